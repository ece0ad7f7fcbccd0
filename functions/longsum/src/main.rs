//! A long checksum that must come out the same however often and whenever the program is
//! snapshotted, moved and restored on its way.
//!
//! It mixes what a snapshot could lose: 4 MiB of memory, registers in tight loops, floating-point
//! arithmetic, a hash map, a second thread with a thread-local of its own, and a short sleep. It
//! prints `started`, works for a second or two of emulated ring 0, and prints `sum SUM`.

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// 64-bit words of the working memory: 4 MiB, one word of every 128 bytes in use.
const WORDS: usize = 4 << 20 >> 3;
const STRIDE: usize = 16;
const ROUNDS: u64 = 3;

thread_local! {
    static TALLY: Cell<u64> = const { Cell::new(0) };
}

fn main() {
    println!("started");
    let (sender, receiver) = mpsc::channel::<u64>();
    let other = thread::spawn(move || {
        for number in receiver {
            TALLY.set(mix(TALLY.get(), number));
        }
        TALLY.get()
    });

    let mut memory = vec![0_u64; WORDS];
    let mut map: HashMap<u64, u64, BuildHasherDefault<DefaultHasher>> = HashMap::default();
    let mut float = 1.0_f64;
    let mut sum = 0x9E37_79B9_7F4A_7C15;
    for round in 0..ROUNDS {
        let mut index = 0;
        while index < WORDS {
            sum = mix(sum, memory[index] ^ index as u64);
            memory[index] = sum;
            index += STRIDE;
        }
        for step in 0..500_u32 {
            float = float * 1.000_1 + 1.0 / (f64::from(step) + 1.5);
            *map.entry(sum % 97).or_insert(0) += u64::from(step);
            sum = mix(sum, float.to_bits());
        }
        TALLY.set(TALLY.get() + round);
        if sender.send(sum).is_err() {
            panic!("the other thread is gone");
        }
        // The timer's state is in the snapshot too.
        thread::sleep(Duration::from_millis(20));
    }
    drop(sender);

    let Ok(tally) = other.join() else {
        panic!("the other thread panicked");
    };
    let mut entries: Vec<_> = map.into_iter().collect();
    entries.sort_unstable();
    for (key, value) in entries {
        sum = mix(sum, key ^ value.rotate_left(32));
    }
    sum = mix(mix(sum, tally), TALLY.get());
    println!("sum {sum:016x}");
}

fn mix(sum: u64, word: u64) -> u64 {
    (sum ^ word)
        .wrapping_mul(0xFF51_AFD7_ED55_8CCD)
        .rotate_left(29)
}
