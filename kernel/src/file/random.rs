//! Random numbers: ChaCha20 (RFC 8439) keyed from the processor's generator and the clock.
//!
//! One generator, the root, hands out keys under a lock; each call fills its buffer with a generator of its own under
//! such a key, without the lock. So long reads do not hold anyone up, and no call learns another's output (the
//! construction of Linux's drivers/char/random.c).
#![allow(unsafe_code)] // the instruction RDRAND

use core::arch::asm;

use chacha20::{
    ChaCha20Rng,
    rand_core::{Rng, SeedableRng},
};
use sync::SpinLock;

use super::io::Sink;
use crate::{hw, signal};

static ROOT: SpinLock<Option<ChaCha20Rng>> = SpinLock::new(None);

/// 64 random bits from the processor, if it has the instruction and the instruction has them.
fn hardware() -> Option<u64> {
    const RDRAND: u32 = 1 << 30;
    let [_, _, features, _] = hw::cpu::cpuid(1, 0);
    if features & RDRAND == 0 {
        return None;
    }
    let (word, ok): (u64, u8);
    // SAFETY: the CPU has the instruction; it changes a register and the flags.
    unsafe { asm!("rdrand {}", "setc {}", out(reg) word, out(reg_byte) ok, options(nomem, nostack)) };
    (ok != 0).then_some(word)
}

/// A key for the root: the processor's random words where it has them, mixed with the clock.
fn seed() -> [u8; 32] {
    let mut seed = [0; 32];
    for (i, chunk) in seed.chunks_exact_mut(8).enumerate() {
        let clock = hw::timer::boot_epoch_ns().rotate_left(32) ^ hw::timer::now().rotate_left(16 * i as u32);
        let word = hardware().unwrap_or(0) ^ clock;
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    seed
}

/// A generator under a fresh key.
fn generator() -> ChaCha20Rng {
    let mut root = ROOT.lock();
    let root = root.get_or_insert_with(|| ChaCha20Rng::from_seed(seed()));
    let mut key = [0; 32];
    root.fill_bytes(&mut key);
    // Bring in what is new, so that a root that was learned once does not stay known.
    let fresh = hardware().unwrap_or(0) ^ hw::timer::now();
    for (k, f) in key.iter_mut().zip(fresh.to_le_bytes()) {
        *k ^= f;
    }
    ChaCha20Rng::from_seed(key)
}

/// Fill `bytes` with random bytes.
pub fn fill(bytes: &mut [u8]) {
    generator().fill_bytes(bytes);
}

/// Fill `sink` with random bytes; says how many went.
pub fn read(sink: &mut dyn Sink) -> usize {
    let mut generator = generator();
    let mut block = [0; 512];
    let mut done = 0;
    while sink.room() > 0 {
        generator.fill_bytes(&mut block);
        let want = sink.room().min(block.len());
        let got = sink.put(block.get(..want).unwrap_or(&block));
        done += got;
        // So long a read must not keep a signal waiting.
        if got < want || signal::pending() {
            break;
        }
    }
    block.fill(0);
    done
}
