//! The page: its head, what all runs have in common, and the runs.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart::colour;
use super::numbers::{moment, percent, short, tame};
use super::percentiles::{self, Curve};
use super::run;
use super::text::time;
use crate::{Histogram, Record, Run};

/// Nothing from elsewhere, nothing that runs.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";
const STYLE: &str = include_str!("style.css");

/// The record as one page that needs nothing else: no script, no font, no request.
#[must_use]
pub fn html(record: &Record) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="referrer" content="no-referrer";
                title { (tame(&record.title)) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                (headline(record))
                main {
                    (banners(record))
                    (summary(record))
                    @for (index, run) in record.runs.iter().enumerate() {
                        (run::section(index, run))
                    }
                }
                footer {
                    p {
                        "Times are counted from the moment at which a request was meant to be sent, so \
                         that a target that stalls cannot hide the requests that it kept waiting. In a \
                         closed loop they are counted from the sending. "
                        em { "Service" } " is from the sending to the last byte."
                    }
                    p { "Written by Dormouse " (tame(&record.machine.version)) " from a " (tame(&record.format)) "." }
                }
            }
        }
    };
    page.into_string()
}

fn headline(record: &Record) -> Markup {
    html! {
        header {
            h1 { (tame(&record.title)) }
            dl.facts {
                div { dt { "Target" } dd { code { (tame(&record.target)) } } }
                div { dt { "Began" } dd { (moment(record.began_unix_ms)) } }
                div { dt { "Load came from" } dd { (tame(&record.machine.to_string())) } }
            }
        }
    }
}

/// What a reader must know before believing a number.
fn banners(record: &Record) -> Markup {
    let limited: Vec<_> = with_number(record, Run::is_client_limited);
    let interrupted = with_number(record, |run| run.interrupted);
    html! {
        @if !limited.is_empty() {
            div.banner.bad #client-limited {
                p { strong { "The client, not the target, was the limit." }
                    " What these runs say of the target is not what it can do:" }
                ul { @for (index, run) in &limited {
                    @for limit in &run.client.limits {
                        li { (link(*index, run)) ": " (tame(limit)) }
                    }
                } }
            }
        }
        @if !interrupted.is_empty() {
            div.banner.warn #interrupted {
                p { strong { "Interrupted before its time: " }
                    @for (place, (index, run)) in interrupted.iter().enumerate() {
                        @if place > 0 { ", " }
                        (link(*index, run))
                    }
                    "." }
            }
        }
        @if !record.machine.warnings().is_empty() {
            div.banner.warn #warnings {
                ul { @for warning in record.machine.warnings() { li { (tame(&warning)) } } }
            }
        }
    }
}

fn with_number(record: &Record, is_wanted: impl Fn(&Run) -> bool) -> Vec<(usize, &Run)> {
    let runs = record.runs.iter().enumerate();
    runs.filter(|(_, run)| is_wanted(run)).collect()
}

fn link(index: usize, run: &Run) -> Markup {
    html! { a href=(format!("#run-{index}")) { (tame(&run.name)) } }
}

fn summary(record: &Record) -> Markup {
    html! {
        section #summary aria-labelledby="summary-heading" {
            h2 #summary-heading { "Runs" }
            @if record.runs.is_empty() { p.none { "The record has no runs." } }
            @else { (runs(record)) }
            @if record.runs.len() > 1 {
                h3 { "Latency of all runs" }
                (overlay(record))
            }
        }
    }
}

fn runs(record: &Record) -> Markup {
    let numbers = [
        "offered/s",
        "achieved/s",
        "p50, ms",
        "p90, ms",
        "p99, ms",
        "p99.9, ms",
        "longest, ms",
        "service p99, ms",
        "failed, %",
    ];
    html! {
        div.scroll tabindex="0" { table {
            thead { tr {
                th scope="col" { "run" }
                @for name in numbers { th.n scope="col" { (name) } }
            } }
            tbody { @for (index, run) in record.runs.iter().enumerate() { tr {
                th scope="row" { (link(index, run)) div.how { (tame(&run.pattern)) } }
                td.n { (short(run.offered_per_s())) }
                td.n { (short(run.achieved_per_s()))
                    @if run.is_client_limited() { " " abbr title="The client was the limit" { "*" } } }
                (times(&run.latency))
                td.n { (time(&run.service, 0.99)) }
                td.n.bad[run.failed > 0] { (percent(run.failed_share())) }
            } } }
        } }
    }
}

/// Cells for the percentiles that tables have.
pub(super) fn times(times: &Histogram) -> Markup {
    html! {
        @for share in [0.5, 0.9, 0.99, 0.999, 1.0] { td.n { (time(times, share)) } }
    }
}

fn overlay(record: &Record) -> Markup {
    let curves: Vec<Curve<'_>> = record
        .runs
        .iter()
        .enumerate()
        .map(|(index, run)| Curve {
            name: &run.name,
            class: colour(index),
            times: &run.latency,
        })
        .collect();
    percentiles::chart("overlay", "Latency of all runs by percentile", &curves)
}
