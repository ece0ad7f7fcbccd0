//! The host's side of the function ABI, as small as it can be: one request in, one answer out.

use dormouse_abi::{HEADER_BYTES, HeadWriter, Header, Location, Sizes};
use dormouse_vmm::{Stop, Vm};

use super::{Captured, far};

/// What came back from a request.
#[derive(Debug)]
pub(crate) enum Outcome {
    Answer { status: u32, body: Vec<u8> },
    Stopped(Stop),
}

/// Runs a function until it waits for its first request; the mailbox' address.
pub(crate) fn ready(vm: &mut Vm, output: &Captured) -> u64 {
    match vm.run(far()).unwrap() {
        Stop::Exchange { mailbox, .. } => {
            header(vm, mailbox).check_registration().unwrap();
            mailbox
        }
        other => panic!(
            "the function at {:#x} did not become ready: {other:?}\n{}{}",
            vm.shell().placement().base,
            output.kernel(),
            output.stderr()
        ),
    }
}

/// Makes a `GET` request for `target`.
pub(crate) fn request(vm: &mut Vm, mailbox: u64, target: &str) -> Outcome {
    let mut head = [0; 512];
    let mut writer = HeadWriter::new(&mut head);
    writer.put(b"GET").unwrap();
    writer.put(target.as_bytes()).unwrap();
    let head_bytes = writer.used_bytes();
    let mut asked = Header {
        request_id: 1,
        ..header(vm, mailbox)
    };
    asked.seal(Sizes {
        location: Location::Inline,
        head_bytes: head_bytes as u32,
        body_bytes: 0,
    });
    vm.write_virtual(mailbox, &asked.encode()).unwrap();
    let inline = mailbox + HEADER_BYTES as u64;
    vm.write_virtual(inline, &head[..head_bytes]).unwrap();

    let stop = vm.run(far()).unwrap();
    if !matches!(stop, Stop::Exchange { .. }) {
        return Outcome::Stopped(stop);
    }
    let answer = header(vm, mailbox);
    answer.check_message().unwrap();
    let mut body = vec![0; answer.answer_body_bytes as usize];
    vm.read_virtual(answer.answer_body_address, &mut body)
        .unwrap();
    Outcome::Answer {
        status: answer.status,
        body,
    }
}

fn header(vm: &Vm, mailbox: u64) -> Header {
    let mut bytes = [0; HEADER_BYTES];
    vm.read_virtual(mailbox, &mut bytes).unwrap();
    Header::decode(&bytes)
}
