//! Fails in every way there is, so that a host can show that it copes. The path chooses:
//!
//! | Path | What happens |
//! |---|---|
//! | `/panic` | a panic |
//! | `/exit?code=N` | the process exits with N (0 unless told) |
//! | `/oom` | an allocation that cannot succeed |
//! | `/stack-overflow` | recursion without end |
//! | `/spin` | an endless loop with interrupts off |
//! | `/write-unmapped` | a write to an address that is not mapped |
//! | `/invalid-opcode` | `ud2` |
//! | `/triple-fault` | an exception without a table of their handlers |
//! | `/bad-hypercall` | a hypercall that the host does not have |
//! | `/huge-answer` | a body of 8 MiB, more than an answer may have |
//! | `/huge-head` | 128 KiB of headers, more than an answer may have |
//! | `/bad-status` | the HTTP status 99 |
//! | `/no-answer` | a sleep without end |
//! | `/error` | the handler returns an error |
//! | `/` | nothing: 200 |

use std::hint::black_box;
use std::process;
use std::thread;
use std::time::Duration;

use dormouse_guest::{Request, Response};

fn main() {
    dormouse_guest::serve(fail);
}

fn fail(request: Request<'_>) -> Result<Response, &'static str> {
    match request.path() {
        "/" | "" => Ok(Response::text("fine\n")),
        "/panic" => panic!("a panic was asked for"),
        "/exit" => {
            let code = request.query_value("code").unwrap_or("0");
            process::exit(code.parse().unwrap_or(0))
        }
        "/oom" => {
            let mut kept = Vec::new();
            loop {
                kept.push(black_box(Vec::<u8>::with_capacity(64 << 20)));
            }
        }
        "/stack-overflow" => Ok(Response::text(recurse(0).to_string())),
        "/spin" => machine::spin(),
        "/write-unmapped" => {
            machine::write_unmapped();
            Err("the write to an unmapped address went through")
        }
        "/invalid-opcode" => machine::invalid_opcode(),
        "/triple-fault" => machine::triple_fault(),
        "/bad-hypercall" => {
            machine::bad_hypercall();
            Err("the hypercall went through")
        }
        "/huge-answer" => Ok(Response::new(200).with_body(vec![b'x'; 8 << 20])),
        "/huge-head" => Ok(Response::new(200).with_header("x-huge", vec![b'x'; 128 << 10])),
        "/bad-status" => Ok(Response::new(99)),
        "/no-answer" => loop {
            thread::sleep(Duration::from_secs(3600));
        },
        "/error" => Err("an error was asked for"),
        _ => Ok(Response::new(404).with_text("no such failure\n")),
    }
}

#[expect(unconditional_recursion, reason = "it is there to overflow the stack")]
fn recurse(depth: u64) -> u64 {
    // The array makes the stack end soon, the use after the call keeps it from becoming a loop.
    let frame = black_box([depth; 64]);
    recurse(depth + 1) + frame[(depth % 64) as usize]
}

/// What no safe code can do.
mod machine {
    use core::arch::asm;
    use core::ptr;

    pub(crate) fn spin() -> ! {
        // SAFETY: the function never goes on, which is what was asked for; only this clone hangs.
        unsafe { asm!("cli", "2:", "jmp 2b", options(noreturn)) }
    }

    pub(crate) fn invalid_opcode() -> ! {
        // SAFETY: the function never goes on; the CPU reports the instruction.
        unsafe { asm!("ud2", options(noreturn)) }
    }

    pub(crate) fn triple_fault() -> ! {
        let no_table = [0_u16; 5];
        // SAFETY: the function never goes on; the CPU finds no handler and shuts down.
        unsafe { asm!("lidt [{}]", "ud2", in(reg) &no_table, options(noreturn)) }
    }

    pub(crate) fn bad_hypercall() {
        // One for each version of Hermit's interface; to the other version it is an absent device.
        for port in [0x640_u16, 0x1200] {
            // SAFETY: the host reads nothing for these and ends the guest; a device that is absent
            // takes no notice.
            unsafe { asm!("out dx, eax", in("dx") port, in("eax") 0, in("rdi") 0_u64) }
        }
    }

    pub(crate) fn write_unmapped() {
        // Canonical, in the half that Hermit does not map, and below its recursive page tables.
        let address = ptr::without_provenance_mut::<u8>(0x7000_0000_0000);
        // SAFETY: none, and that is the point: nothing is mapped here, the CPU reports the write,
        // and only this clone ends.
        unsafe { address.write_volatile(1) }
    }
}
