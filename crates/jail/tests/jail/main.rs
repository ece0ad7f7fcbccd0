//! Jails on this host, with this kernel: a process tries what it must not be able to do, and is
//! seen to be refused; and does what it must be able to do.
//!
//! The test program is its own child: called with an order (see `order`), it confines itself and
//! does what the order says.

use std::env;
use std::process::ExitCode;

mod child;
mod deed;
mod group;
mod order;
mod parent;
mod refused;
mod rules;
mod seen;
mod works;

fn main() -> ExitCode {
    if let Some(order) = order::given() {
        return child::carry_out(&order);
    }
    let arguments = libtest_mimic::Arguments::from_iter(env::args_os());
    let mut tests = Vec::new();
    tests.extend(refused::tests());
    tests.extend(works::tests());
    tests.extend(seen::tests());
    tests.extend(group::tests());
    tests.extend(rules::tests());
    libtest_mimic::run(&arguments, tests).exit_code()
}
