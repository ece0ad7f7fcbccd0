//! The limits of `dormouse serve`: what clients and functions may take of the server and its host.

use std::time::Duration;

use clap::Args;
use dormouse_pool::PoolConfig;
use dormouse_server::{Limits, bytes_from_text};

/// One group of the command's options.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitArgs {
    /// How many invocations may run at once, over all functions
    #[arg(long, value_name = "NUMBER", value_parser = at_once, default_value_t = PoolConfig::default().max_concurrency)]
    max_concurrency: usize,

    /// How many requests may wait for one function
    #[arg(long, value_name = "NUMBER", default_value_t = PoolConfig::default().max_queue)]
    queue: usize,

    /// How long a request may wait
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "10s")]
    queue_timeout: Duration,

    /// How many deployments and warmings may run or wait at once
    #[arg(long, value_name = "NUMBER", value_parser = at_once, default_value_t = PoolConfig::default().max_deploys)]
    max_deploys: usize,

    /// How much memory all instances may hold together [default: three quarters of what is free]
    #[arg(long, value_name = "SIZE", value_parser = bytes_from_text)]
    memory_budget: Option<u64>,

    /// Below how much free memory on the host, or in the server's control group, nothing new starts
    /// and idle instances end; 0 for never
    #[arg(long, value_name = "SIZE", value_parser = bytes_from_text, default_value = "128MiB")]
    memory_floor: u64,

    /// How many connections may be open at once; for one more, the one that has been silent for the
    /// longest is closed
    #[arg(long, value_name = "NUMBER", value_parser = at_once, default_value_t = Limits::default().connections)]
    max_connections: usize,

    /// The largest image that may be deployed
    #[arg(long, value_name = "SIZE", value_parser = bytes_from_text, default_value = "64MiB")]
    max_image: u64,

    /// The largest body of an invocation; functions take no more than the default
    #[arg(long, value_name = "SIZE", value_parser = bytes_from_text, default_value = "6MiB")]
    max_body: u64,

    /// How much the bodies of all requests and answers may hold together: images one half of it, at
    /// least one image, invocations the other
    #[arg(long, value_name = "SIZE", value_parser = bytes_from_text, default_value = "512MiB")]
    max_buffered: u64,

    /// How long a client may take to send a request's head, idle time included
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "30s")]
    header_timeout: Duration,

    /// How long a client may take to send a body
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "30s")]
    body_timeout: Duration,

    /// How long a client may take to send an image
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "5m")]
    image_timeout: Duration,

    /// How long a client may take to read its answer, from when it lets bytes of it wait
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "30s")]
    write_timeout: Duration,
}

impl LimitArgs {
    /// With these limits and otherwise the defaults.
    pub(crate) fn pool(&self) -> PoolConfig {
        PoolConfig {
            max_concurrency: self.max_concurrency,
            max_queue: self.queue,
            queue_timeout: self.queue_timeout,
            max_deploys: self.max_deploys,
            memory_budget_bytes: self.memory_budget,
            memory_floor_bytes: self.memory_floor,
            ..PoolConfig::default()
        }
    }

    /// With these limits and otherwise the defaults.
    pub(crate) fn server(&self) -> Limits {
        let bytes = |size| usize::try_from(size).unwrap_or(usize::MAX);
        Limits {
            image_bytes: bytes(self.max_image),
            body_bytes: bytes(self.max_body),
            buffer_bytes: bytes(self.max_buffered),
            connections: self.max_connections,
            header_timeout: self.header_timeout,
            body_timeout: self.body_timeout,
            image_timeout: self.image_timeout,
            write_timeout: self.write_timeout,
            ..Limits::default()
        }
    }
}

/// A number of things that may happen at once: none would be no server.
fn at_once(text: &str) -> Result<usize, String> {
    const MOST: usize = 1_000_000;
    match text.parse() {
        Ok(number) if (1..=MOST).contains(&number) => Ok(number),
        _ => Err(format!("write a number from 1 to {MOST}")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        limits: LimitArgs,
    }

    #[test]
    fn what_help_calls_the_defaults_are_the_defaults() {
        let Line { limits } = Line::parse_from(["serve"]);
        let texts = |pool: PoolConfig, limits: Limits| format!("{pool:?} {limits:?}");
        assert_eq!(
            texts(limits.pool(), limits.server()),
            texts(PoolConfig::default(), Limits::default())
        );
    }
}
