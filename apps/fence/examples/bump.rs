//! What the guard saves: `cargo run --release -p quire-fence --example bump` times allocation with the guard as its limit check, and with
//! a comparison.

use std::{hint::black_box, time::Instant};

const LEN: usize = 1 << 20;
const ROUNDS: usize = 2000;

/// The same area with a comparison.
struct Compared {
    low: *mut u8,
    next: *mut u8,
}

impl Drop for Compared {
    // Beside the other, which brings its end back.
    fn drop(&mut self) {
        black_box(self.next);
    }
}

impl Compared {
    #[inline(always)]
    fn alloc(&mut self, size: usize, header: u64) -> Option<*mut u64> {
        let at = self.next.wrapping_sub(size);
        if at < self.low {
            return None;
        }
        // SAFETY: in the area, which nobody else uses.
        unsafe { at.cast::<u64>().write(header) };
        self.next = at;
        Some(at.cast())
    }
}

fn main() {
    let [guarded, compared] = times();
    println!("guard {guarded:.2} ns, comparison {compared:.2} ns an object: {:.2}", guarded / compared);
}

/// How much longer one with a guard takes.
#[allow(dead_code, reason = "the benchmark's, which has this file as a module")]
pub fn ratio() -> f64 {
    let [guarded, compared] = times();
    guarded / compared
}

/// Nanoseconds an object, with a guard and with a comparison.
fn times() -> [f64; 2] {
    let mut bump = fence::Bump::new(LEN, 4096).expect("memory");
    let mut memory = vec![0_u64; LEN / 8];
    let low = memory.as_mut_ptr().cast::<u8>();
    let mut times: [Vec<f64>; 2] = Default::default();
    for _ in 0..15 {
        let (mut n, mut m) = (0_usize, 0_usize);
        let start = Instant::now();
        for _ in 0..ROUNDS / 10 {
            bump.reset();
            let mut cursor = bump.cursor();
            while let Some(at) = cursor.alloc(black_box(32), 7) {
                black_box(at);
                n += 1;
            }
        }
        times[0].push(start.elapsed().as_nanos() as f64 / n as f64);
        let start = Instant::now();
        for _ in 0..ROUNDS / 10 {
            let mut compared = Compared { low, next: low.wrapping_add(LEN) };
            while let Some(at) = compared.alloc(black_box(32), 7) {
                black_box(at);
                m += 1;
            }
        }
        times[1].push(start.elapsed().as_nanos() as f64 / m as f64);
        assert_eq!(n, m);
    }
    times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    })
}
