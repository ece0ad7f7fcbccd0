//! A Hermit program that knows nothing of Dormouse, for `dormouse run`.
//!
//! Prints its arguments and the variable GREETING, a line on stderr, and does what arguments ask:
//! `--read PATH` prints a file (the host's folder is under /root), `--exit CODE` chooses the exit
//! code, `--panic` panics.

use std::process::ExitCode;
use std::{env, fs};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    println!("arguments: {arguments:?}");
    match env::var("GREETING") {
        Ok(greeting) => println!("GREETING: {greeting}"),
        Err(_) => println!("GREETING is not set"),
    }
    eprintln!("this line goes to stderr");

    let mut exit_code = 0;
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().map_or("", String::as_str);
        match argument.as_str() {
            "--read" => {
                let path = value();
                match fs::read_to_string(path) {
                    Ok(text) => print!("{text}"),
                    Err(error) => {
                        eprintln!("cannot read {path}: {error}");
                        exit_code = 2;
                    }
                }
            }
            "--exit" => exit_code = value().parse().unwrap_or(1),
            "--panic" => panic!("a panic was asked for"),
            _ => {}
        }
    }
    ExitCode::from(exit_code)
}
