//! A run's part of the page.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::numbers::{bytes, count, ms, percent, percent_of, seconds, short, tame};
use super::page::times;
use super::percentiles::{self, Curve};
use super::text::time;
use super::{breakdown, series};
use crate::{Histogram, Run, Share};

/// All that there is to show of a run. Ids come from its number: names are anybody's.
pub(super) fn section(index: usize, run: &Run) -> Markup {
    let id = |part: &str| format!("run-{index}-{part}");
    html! {
        section.run id=(format!("run-{index}")) aria-labelledby=(id("heading")) {
            h2 id=(id("heading")) { (tame(&run.name)) }
            p.pattern { (tame(&run.pattern)) @if run.interrupted { " — interrupted before its time" } }
            (tiles(run))
            (findings(run))
            section id=(id("distribution")) { h3 { "Latency distribution" } (distribution(&id("percentiles"), run)) }
            section id=(id("time")) { h3 { "Over time" } (series::chart(&id("series"), run)) }
            section id=(id("stages")) {
                h3 { "Where the time went" }
                (breakdown::breakdown(&id("breakdown"), run))
                (stages(run))
            }
            section id=(id("starts")) {
                h3 { "Start types" }
                (breakdown::starts(&id("shares"), run))
                (shares("start type", "No answer said how it started.", &run.starts))
            }
            section id=(id("requests")) { h3 { "Requests" } (shares("request", "There were none.", &run.requests)) }
            section id=(id("errors")) { h3 { "Errors" } (errors(run)) }
            section id=(id("client")) { h3 { "The client" } (client(run)) }
            section id=(id("facts")) { h3 { "Raw facts" } (facts(run)) }
        }
    }
}

/// The numbers that are looked for first.
fn tiles(run: &Run) -> Markup {
    let tile = |name: &str, value: String, unit: &str| {
        html! { div { dt { (name) } dd { (value) " " span.unit { (unit) } } } }
    };
    html! {
        dl.tiles {
            (tile("achieved", short(run.achieved_per_s()), "/s"))
            (tile("p50", time(&run.latency, 0.5), "ms"))
            (tile("p99", time(&run.latency, 0.99), "ms"))
            (tile("p99.9", time(&run.latency, 0.999), "ms"))
            (tile("longest", time(&run.latency, 1.0), "ms"))
            (tile("failed", percent(run.failed_share()), "%"))
        }
    }
}

fn findings(run: &Run) -> Markup {
    html! {
        @if !run.client.limits.is_empty() {
            div.banner.bad {
                strong { "The client was the limit." }
                ul { @for limit in &run.client.limits { li { (tame(limit)) } } }
            }
        }
        @if !run.findings.is_empty() {
            div.findings {
                h3 { "Findings" }
                ul { @for finding in &run.findings { li { (tame(finding)) } } }
            }
        }
    }
}

fn distribution(id: &str, run: &Run) -> Markup {
    let curve = |name, class: &str, times| Curve {
        name,
        class: class.to_owned(),
        times,
    };
    let mut curves = vec![
        curve("latency", "c0", &run.latency),
        curve("service time", "c1", &run.service),
    ];
    if !run.failures.is_empty() {
        curves.push(curve("until failure", "c3", &run.failures));
    }
    percentiles::chart(id, "Latency by percentile", &curves)
}

/// What the columns of [`times`] are called.
fn times_head() -> Markup {
    html! {
        @for name in ["p50, ms", "p90, ms", "p99, ms", "p99.9, ms", "longest, ms"] {
            th.n scope="col" { (name) }
        }
    }
}

fn stages(run: &Run) -> Markup {
    html! {
        @if !run.stages.is_empty() {
            div.scroll tabindex="0" { table {
                caption { "Stages, as the target told them" }
                thead { tr {
                    th scope="col" { "stage" } th.n scope="col" { "answers" } (times_head())
                } }
                tbody { @for (name, stage) in &run.stages { tr {
                    th scope="row" { (tame(name)) }
                    td.n { (count(stage.count())) }
                    (times(stage))
                } } }
            } }
        }
    }
}

fn shares(what: &str, none: &str, shares: &BTreeMap<String, Share>) -> Markup {
    let counts = shares.values().map(|share| share.latency.count());
    let all = counts.fold(0, u64::saturating_add);
    html! {
        @if shares.is_empty() { p.none { (none) } }
        @else {
            div.scroll tabindex="0" { table {
                thead { tr {
                    th scope="col" { (what) }
                    th.n scope="col" { "answers" }
                    th.n scope="col" { "share, %" }
                    th.n scope="col" { "failed" }
                    (times_head())
                } }
                tbody { @for (name, share) in shares { tr {
                    th scope="row" { (tame(name)) }
                    td.n { (count(share.latency.count())) }
                    td.n { (percent_of(share.latency.count(), all)) }
                    td.n.bad[share.failed > 0] { (count(share.failed)) }
                    (times(&share.latency))
                } } }
            } }
        }
    }
}

fn errors(run: &Run) -> Markup {
    let all = run.answered.saturating_add(run.failed);
    html! {
        @if run.errors.is_empty() { p.none { "No request failed." } }
        @else {
            div.scroll tabindex="0" { table {
                thead { tr {
                    th scope="col" { "error" }
                    th.n scope="col" { "count" }
                    th.n scope="col" { "of all, %" }
                    th.n scope="col" { "first at, s" }
                    th scope="col" { "what the first one said" }
                } }
                tbody { @for (kind, error) in &run.errors { tr {
                    th scope="row" { (tame(kind)) }
                    td.n.bad { (count(error.count)) }
                    td.n { (percent_of(error.count, all)) }
                    td.n { (short(error.first_at_us as f64 / 1e6)) }
                    td.wide { (tame(&error.example)) }
                } } }
            } }
        }
        @if !run.statuses.is_empty() {
            p { "Replies by status: "
                @for (place, (status, replies)) in run.statuses.iter().enumerate() {
                    @if place > 0 { ", " }
                    code { (status) } " × " (count(*replies))
                }
                "." }
        }
    }
}

fn client(run: &Run) -> Markup {
    let client = &run.client;
    let all = run.answered.saturating_add(run.failed);
    let late = |times: &Histogram| match times.is_empty() {
        true => "–".to_owned(),
        false => format!(
            "p50 {} ms, p99 {} ms, longest {} ms",
            ms(times.quantile_us(0.5)),
            ms(times.quantile_us(0.99)),
            ms(times.max_us())
        ),
    };
    html! {
        @if client.limits.is_empty() { p { "The client was not the limit." } }
        @else { p.bad { "The client was the limit: see the top of this run." } }
        dl.facts {
            (fact("sent late by", &late(&client.lag)))
            (fact("waited for a connection", &format!("{} ({} %)", count(client.waited), percent_of(client.waited, all))))
            (fact("threads", &client.threads.to_string()))
            (fact("connections at most", &client.connections.to_string()))
            (fact("connections opened", &count(client.opened)))
            (fact("busiest thread", &format!("{} % of its core", percent(client.busiest_thread))))
            (fact("CPU time", &seconds(client.cpu_us)))
            (fact("CPU for 1000 requests/s", &format!("{} % of a core", short(client.cpu_percent_per_1000_per_s))))
        }
    }
}

fn facts(run: &Run) -> Markup {
    let capacity = run
        .capacity_per_s
        .map(|rate| format!("{} answers/s", short(rate)));
    html! {
        dl.facts {
            (fact("loop", if run.is_open { "open" } else { "closed" }))
            (fact("warm-up", &seconds(run.warmup_us)))
            (fact("measured", &seconds(run.measured_us)))
            (fact("capacity measured before", &capacity.unwrap_or_else(|| "not needed".to_owned())))
            (fact("meant to be sent", &count(run.offered)))
            (fact("good answers", &count(run.answered)))
            (fact("of them in time", &count(run.answered_in_time)))
            (fact("failed", &count(run.failed)))
            (fact("bodies of good answers", &bytes(run.body_bytes)))
            (fact("a slice", &seconds(run.slice_us)))
        }
    }
}

fn fact(name: &str, value: &str) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}
