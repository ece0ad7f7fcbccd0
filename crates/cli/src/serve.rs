//! `dormouse serve`: the HTTP server over a store.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use dormouse_pool::{Pool, PoolConfig, Verify};
use dormouse_server::{App, Limits, TokenGuard};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, lookup_host};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::api::open_store;
use crate::exit::{Exit, Failed};
use crate::heaps;
use crate::limits::LimitArgs;
use crate::token;
use crate::worker::IsolationArg;

/// Serves the functions of a store over HTTP until it is told to stop
///
/// SIGINT or SIGTERM lets the requests that run finish; a second one ends at once.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Address and port to listen on; port 0 picks a free one. Beyond loopback (127.0.0.1, ::1) it
    /// takes --tokens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: String,

    /// Let in only who has a token of this file (`dormouse token create` makes both). What is changed
    /// there counts within about a second. Traffic is not encrypted: beyond this machine, put a proxy
    /// before it that speaks TLS
    #[arg(long, value_name = "FILE", env = "DORMOUSE_TOKENS")]
    tokens: Option<PathBuf>,

    /// Listen beyond loopback without tokens: whoever can reach the port may deploy, run and remove
    /// functions. On loopback, answer to any name, also to one that a web page has made up
    #[arg(long, conflicts_with = "tokens")]
    insecure_no_tokens: bool,

    /// The store [env: DORMOUSE_STORE] [default: snapshots/store]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,

    /// Write the URL into this file once the server listens
    #[arg(long, value_name = "FILE")]
    url_file: Option<PathBuf>,

    /// Where guests run
    #[arg(
        long,
        value_name = "WHERE",
        value_enum,
        env = "DORMOUSE_ISOLATION",
        default_value_t
    )]
    isolation: IsolationArg,

    /// How many VM shells are kept ready for each function in use
    #[arg(long, value_name = "NUMBER", default_value_t = PoolConfig::default().shells_ahead)]
    shells_ahead: usize,

    /// Give a clone's memory back after each request instead of rolling it back for the next one:
    /// less memory, more time
    #[arg(long)]
    no_rollback: bool,

    /// When a snapshot's pages are compared with their digests: `always` before any of them is used;
    /// `background` beside the first requests, after which damage ends the use of the snapshot; `off`
    /// never
    #[arg(long, value_name = "WHEN", env = "DORMOUSE_VERIFY", default_value_t)]
    verify: Verify,

    /// How long the requests may take together that a function is warmed with
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "10m")]
    warm_timeout: Duration,

    /// Let requests choose how their instance starts (header X-Dormouse-Start): for measurements,
    /// since one client can make all others wait that way
    #[arg(long)]
    start_choice: bool,

    /// How long running requests may take to finish on shutdown
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "30s")]
    grace: Duration,

    #[command(flatten)]
    limits: LimitArgs,
}

/// Runs the command.
pub(crate) async fn serve(args: &ServeArgs) -> Result<()> {
    let config = PoolConfig {
        shells_ahead: args.shells_ahead,
        rolls_back: !args.no_rollback,
        verify: args.verify,
        warm_timeout: args.warm_timeout,
        isolation: args.isolation.isolation(),
        ..args.limits.pool()
    };
    let guard = args.tokens.as_deref().map(TokenGuard::open).transpose();
    let guard = guard.map_err(token::failed)?;
    let addresses = addresses(args).await?;
    let limits = Limits {
        grace: args.grace,
        start_choice: args.start_choice,
        local_names_only: guard.is_none()
            && !args.insecure_no_tokens
            && !addresses.iter().any(is_beyond_loopback),
        ..args.limits.server()
    };
    raise_descriptor_limit();
    heaps::give_back().context("cannot start a thread")?;
    // Before the listener, so that whoever sees the port open can rely on the signals.
    let stop = stop_signal()?;
    let pool = Pool::new(open_store(args.store.clone())?, config);
    let listener = TcpListener::bind(&addresses[..])
        .await
        .map_err(|error| cannot_listen(args, &error))?;
    let url = format!("http://{}", listener.local_addr()?);
    if let Some(file) = &args.url_file {
        write_url(file, &url).with_context(|| format!("cannot write {}", file.display()))?;
    }
    eprintln!("listening on {url}");
    let app = App::with_guard(pool, limits, guard);
    dormouse_server::serve(listener, app, stop).await?;
    eprintln!("stopped");
    Ok(())
}

/// Where to listen, if that is safe.
async fn addresses(args: &ServeArgs) -> Result<Vec<SocketAddr>, Failed> {
    let found = lookup_host(&args.listen).await;
    let found: Vec<_> = found.map_err(|e| cannot_listen(args, &e))?.collect();
    let beyond = found.iter().find(|address| is_beyond_loopback(address));
    match beyond {
        Some(address) if args.insecure_no_tokens => {
            eprintln!(
                "warning: whoever can reach {address} may deploy, run and remove functions here"
            );
        }
        Some(address) if args.tokens.is_none() => {
            let message = format!(
                "will not listen on {address} without tokens: whoever can reach it could deploy, run \
                 and remove functions"
            );
            return Err(Failed::new(Exit::Usage, message).hint(
                "`dormouse token create` makes a file for --tokens; or listen on 127.0.0.1; or say \
                 --insecure-no-tokens",
            ));
        }
        _ => {}
    }
    Ok(found)
}

/// `::ffff:127.0.0.1` is loopback, too.
fn is_beyond_loopback(address: &SocketAddr) -> bool {
    !address.ip().to_canonical().is_loopback()
}

fn cannot_listen(args: &ServeArgs, error: &std::io::Error) -> Failed {
    Failed::new(
        Exit::Unavailable,
        format!("cannot listen on {}: {error}", args.listen),
    )
    .hint("another server may run there; --listen takes another address or port")
}

/// Every connection and every VM takes descriptors, and the usual limit of 1024 is for programs that
/// use `select`. Where it cannot be raised, the server runs with what there is.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays at {:?}", limit.current);
    }
}

/// In one rename, so that a reader never sees half a URL.
fn write_url(file: &Path, url: &str) -> Result<()> {
    let folder = file
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let mut half = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
    writeln!(half, "{url}")?;
    half.persist(file)?;
    Ok(())
}

/// Resolves at the first SIGINT or SIGTERM; the second ends the process.
fn stop_signal() -> Result<impl Future<Output = ()>> {
    async fn either(interrupt: &mut Signal, terminate: &mut Signal) {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        either(&mut interrupt, &mut terminate).await;
        eprintln!("stopping; once more ends at once");
        tokio::spawn(async move {
            either(&mut interrupt, &mut terminate).await;
            std::process::exit(i32::from(Exit::Temporary as u8));
        });
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_can_reach_is_told_from_loopback() {
        for (address, beyond) in [
            ("127.0.0.1:1", false),
            ("127.255.0.9:1", false),
            ("[::1]:1", false),
            ("[::ffff:127.0.0.1]:1", false),
            ("0.0.0.0:1", true),
            ("[::]:1", true),
            ("10.0.0.1:1", true),
            ("169.254.0.1:1", true),
            ("[fe80::1]:1", true),
            ("[::ffff:0.0.0.0]:1", true),
        ] {
            let parsed = address.parse().unwrap();
            assert_eq!(is_beyond_loopback(&parsed), beyond, "{address}");
        }
    }
}
