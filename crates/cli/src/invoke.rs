//! `dormouse invoke`: one request to one function.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Result;
use axum::http::{HeaderName, HeaderValue, Method, Request};
use bytes::Bytes;
use clap::Args;

use crate::api::{Api, Place, Reply, function_path, problem};
use crate::deploy::read_file;
use crate::exit::{Exit, Failed};
use crate::output;

/// Sends a request to a function and prints the body of its answer as it is
///
/// A terminal gets no control characters but ends of lines and tabs: the others are written out.
#[derive(Debug, Args)]
pub(crate) struct InvokeArgs {
    /// The function's name
    name: String,

    /// The HTTP method [default: GET, or POST where there is data]
    #[arg(short = 'X', long)]
    method: Option<Method>,

    /// Path and query as the function sees them
    #[arg(short, long, value_name = "PATH", default_value = "/")]
    path: String,

    /// A header; may be given several times
    #[arg(short = 'H', long, value_name = "NAME: VALUE", value_parser = header)]
    header: Vec<(HeaderName, HeaderValue)>,

    /// The body
    #[arg(short, long, value_name = "TEXT")]
    data: Option<String>,

    /// The file that holds the body; `-` is stdin
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    data_file: Option<PathBuf>,

    /// Print status and headers too, on stderr
    #[arg(short, long)]
    include: bool,

    #[command(flatten)]
    place: Place,
}

/// Runs the command.
pub(crate) async fn invoke(args: &InvokeArgs) -> Result<()> {
    let request = request(args)?;
    let api = Api::open(&args.place)?;
    let result = api.send(request).await;
    api.close().await;
    let reply = result?;

    if args.include {
        eprint_head(&reply);
    }
    if let Some(failed) = problem(&reply) {
        return Err(failed.into());
    }
    output::of_function(reply.body())?;
    if reply.status().is_server_error() {
        return Err(Failed::new(
            Exit::Function,
            format!("the function answered with status {}", reply.status()),
        )
        .into());
    }
    Ok(())
}

fn request(args: &InvokeArgs) -> Result<Request<Bytes>> {
    let body = match (&args.data, &args.data_file) {
        (Some(text), _) => Some(Bytes::from(text.clone())),
        (None, Some(path)) if path == Path::new("-") => {
            let mut bytes = Vec::new();
            std::io::stdin().lock().read_to_end(&mut bytes)?;
            Some(bytes.into())
        }
        (None, Some(path)) => Some(read_file(path)?),
        (None, None) => None,
    };
    let default = if body.is_some() {
        Method::POST
    } else {
        Method::GET
    };
    let path = args.path.strip_prefix('/').unwrap_or(&args.path);
    let mut builder = Request::builder()
        .method(args.method.clone().unwrap_or(default))
        .uri(format!("{}/invoke/{path}", function_path(&args.name)));
    for (name, value) in &args.header {
        builder = builder.header(name, value);
    }
    builder.body(body.unwrap_or_default()).map_err(|error| {
        Failed::new(
            Exit::Usage,
            format!("{:?} cannot stand in a URL: {error}", args.path),
        )
        .hint("write what is not allowed there as %XX")
        .into()
    })
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let wrong = || format!("{text:?} is not a header; write NAME: VALUE");
    let (name, value) = text.split_once(':').ok_or_else(wrong)?;
    let name = name.trim().parse().map_err(|_| wrong())?;
    let value = value.trim().parse().map_err(|_| wrong())?;
    Ok((name, value))
}

fn eprint_head(reply: &Reply) {
    eprintln!("{}", reply.status());
    for (name, value) in reply.headers() {
        let value = String::from_utf8_lossy(value.as_bytes());
        eprintln!("{name}: {}", output::shown(&value));
    }
    eprintln!();
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: InvokeArgs,
    }

    fn of(line: &[&str]) -> Result<Request<Bytes>> {
        let line = ["invoke"].iter().chain(line);
        request(&Line::try_parse_from(line)?.args)
    }

    #[test]
    fn a_line_becomes_a_request() {
        let plain = of(&["hello"]).unwrap();
        assert_eq!(plain.method(), Method::GET);
        assert_eq!(plain.uri(), "/v1/functions/hello/invoke/");

        let full = of(&["f", "-p", "/a?b=c", "-H", "X-A: 1: 2", "-d", "text"]).unwrap();
        assert_eq!(full.method(), Method::POST);
        assert_eq!(full.uri(), "/v1/functions/f/invoke/a?b=c");
        assert_eq!(full.headers()["x-a"], "1: 2");
        assert_eq!(full.body(), "text");

        let odd = of(&["f", "-X", "PROPFIND", "-p", "a"]).unwrap();
        assert_eq!(odd.method().as_str(), "PROPFIND");
        assert_eq!(odd.uri(), "/v1/functions/f/invoke/a");
    }

    #[test]
    fn what_makes_no_request_is_said() {
        for line in [
            &["f", "-p", "a b"][..],
            &["f", "-H", "no colon"],
            &["f", "-H", "a b: c"],
            &["f", "-X", "GE T"],
            &["f", "-d", "x", "--data-file", "y"],
            &["f", "--data-file", "/no/such/file"],
            &[],
        ] {
            assert!(of(line).is_err(), "{line:?}");
        }
    }
}
