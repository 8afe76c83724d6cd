//! What guards cost, beside the ways to do without: rows for `cargo quire bench apps`.
//!
//! - *A guarded heap* beside Electric Fence and DUMA (Debian packages `electric-fence`, `duma`), the same loop in a process each.
//! - *One object of a thousand guarded* beside the system's allocator, in a loop that fills and reads its objects.
//! - *A bump area that ends at a guard* beside one with a comparison: `examples/bump.rs` has the loop alone.
//!
//! Ratios are medians over runs, in turns.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    hint::black_box,
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

static FENCE: fence::FenceAlloc = fence::FenceAlloc::new();
static SAMPLED: fence::FenceAlloc = fence::FenceAlloc::sampled(1000);

/// Objects that live at a time.
const LIVE: usize = 1000;

#[path = "../../examples/bump.rs"]
#[allow(dead_code, reason = "its `main` is the example's")]
mod bump;

/// The status by which a program says that a primitive is missing.
const MISSING: u8 = 77;

/// What guards are made by, as options and records name it.
const BACKENDS: [&str; 2] = ["guard", "mprotect"];

struct Options {
    /// `BACKENDS`; the best that works here if none is named.
    backend: Option<&'static str>,
    verify: bool,
    runs: usize,
    steps: usize,
    seed: u64,
    json: Option<PathBuf>,
    child: bool,
}

/// xorshift64*, Vigna (2016).
fn next(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

/// Nanoseconds that it takes to free an object and allocate another, of 16 to 1500 bytes; with `fills` also to fill and to
/// read it.
fn churn(heap: &dyn GlobalAlloc, steps: usize, seed: u64, fills: bool) -> f64 {
    let mut random = seed | 1;
    let mut live: Vec<(*mut u8, Layout)> = Vec::with_capacity(LIVE);
    let mut sum = 0_u64;
    let begin = Instant::now();
    for step in 0..steps {
        let size = 16 + next(&mut random) as usize % 1485;
        let layout = Layout::from_size_align(size, 16).unwrap_or(Layout::new::<u128>());
        // SAFETY: of a size that isn't 0; used within it, and freed once.
        unsafe {
            let at = heap.alloc(layout);
            if at.is_null() {
                continue;
            }
            if fills {
                at.write_bytes(step as u8, size);
                sum += (0..size).step_by(8).map(|i| u64::from(at.add(i).read_volatile())).sum::<u64>();
            } else {
                at.write_volatile(1);
            }
            if live.len() < LIVE {
                live.push((at, layout));
            } else {
                let victim = next(&mut random) as usize % LIVE;
                let (old, layout) = std::mem::replace(&mut live[victim], (at, layout));
                heap.dealloc(old, layout);
            }
        }
    }
    let ns = begin.elapsed().as_nanos() as f64 / steps as f64;
    black_box(sum);
    // SAFETY: each is live.
    live.into_iter().for_each(|(at, layout)| unsafe { heap.dealloc(at, layout) });
    ns
}

/// Objects that come and go, each filled with a byte of its own and looked through when it goes: how many no longer held it.
fn spoilt(heap: &dyn GlobalAlloc, steps: usize, seed: u64) -> usize {
    let mut random = seed | 1;
    let mut live: Vec<(*mut u8, Layout, u8)> = Vec::with_capacity(LIVE);
    let end = |(at, layout, byte): (*mut u8, Layout, u8)| {
        // SAFETY: a live object, of which all bytes were written; it is freed once.
        unsafe {
            let whole = (0..layout.size()).all(|i| at.add(i).read_volatile() == byte);
            heap.dealloc(at, layout);
            usize::from(!whole)
        }
    };
    let mut count = 0;
    for step in 0..steps {
        let align = 1 << (next(&mut random) % 7);
        let size = 1 + next(&mut random) as usize % 9000;
        let Ok(layout) = Layout::from_size_align(size, align) else { continue };
        // SAFETY: of a size that isn't 0.
        let at = unsafe { heap.alloc(layout) };
        if at.is_null() || !(at as usize).is_multiple_of(align) {
            count += 1;
            continue;
        }
        // SAFETY: within it.
        unsafe { at.write_bytes(step as u8, size) };
        if live.len() == LIVE {
            let victim = next(&mut random) as usize % LIVE;
            count += end(live.swap_remove(victim));
        }
        live.push((at, layout, step as u8));
    }
    count + live.into_iter().map(end).sum::<usize>()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The same loop in a process whose `malloc` is a library's.
fn preloaded(library: &str, options: &Options) -> Option<f64> {
    let output = Command::new(std::env::current_exe().ok()?)
        .args(["--child", "--steps", &options.steps.to_string(), "--seed", &options.seed.to_string()])
        .env("LD_PRELOAD", library)
        .env("DUMA_OUTPUT_STDERR", "0")
        .stderr(Stdio::null())
        .output()
        .ok()?;
    String::from_utf8_lossy(&output.stdout).lines().find_map(|line| line.strip_prefix("ns ")?.parse().ok())
}

struct Row {
    peer: &'static str,
    what: &'static str,
    ratio: f64,
    target: Option<f64>,
}

fn rows(options: &Options) -> Vec<Row> {
    let mut rows = Vec::new();
    let each = |own: &dyn Fn() -> f64, peer: &dyn Fn() -> Option<f64>| {
        let ratios: Vec<f64> = (0..options.runs).filter_map(|_| Some(own() / peer()?)).collect();
        (!ratios.is_empty()).then(|| median(ratios))
    };
    let what = "malloc and free";
    let guarded = || churn(&FENCE, options.steps, options.seed, false);
    for (peer, library) in [("electric-fence", "libefence.so.0"), ("duma", "libduma.so.0")] {
        let is_there = ["/usr/lib", "/usr/lib/x86_64-linux-gnu"]
            .iter()
            .any(|folder| std::path::Path::new(folder).join(library).exists());
        let ratio = if is_there { each(&guarded, &|| preloaded(library, options)) } else { None };
        match ratio {
            Some(ratio) => rows.push(Row { peer, what, ratio, target: Some(0.5) }),
            None => eprintln!("fence: {peer} is left out: install the package {peer}"),
        }
    }
    let plain = || Some(churn(&System, 20 * options.steps, options.seed, false));
    if let Some(ratio) = each(&guarded, &plain) {
        rows.push(Row { peer: "glibc", what, ratio, target: None });
    }
    let sampled = || churn(&SAMPLED, 20 * options.steps, options.seed, true);
    let plain = || Some(churn(&System, 20 * options.steps, options.seed, true));
    if let Some(ratio) = each(&sampled, &plain) {
        rows.push(Row {
            peer: "glibc",
            what: "one of 1000 guarded, objects used",
            ratio,
            target: Some(1.02),
        });
    }
    let ratio = median((0..options.runs).map(|_| bump::ratio()).collect());
    rows.push(Row { peer: "a comparison", what: "bump allocation", ratio, target: Some(1.02) });
    rows
}

fn parse() -> Result<Options, String> {
    let mut options =
        Options { backend: None, verify: false, runs: 5, steps: 20_000, seed: 1, json: None, child: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("{text} is no number"));
        match &*word {
            "--runs" => options.runs = number(value()?)?.clamp(1, 100) as usize,
            "--steps" => options.steps = number(value()?)?.clamp(1, 1 << 30) as usize,
            "--seed" => options.seed = number(value()?)?,
            "--json" => options.json = Some(value()?.into()),
            "--scale" => match &*value()? {
                "ci" => (options.runs, options.steps) = (1, 5000),
                "full" => {}
                other => return Err(format!("--scale is ci or full, not {other}")),
            },
            "--verify" => options.verify = true,
            "--backend" => {
                let name = value()?;
                let known = BACKENDS.into_iter().find(|one| *one == name);
                options.backend =
                    Some(known.ok_or_else(|| format!("--backend is guard or mprotect, not {name}"))?);
            }
            "--child" => options.child = true,
            _ => {
                return Err(format!(
                    "no option {word}: there is --backend guard|mprotect, --runs N, --steps N, --seed N, --scale ci|full, \
                     --verify, --json FILE"
                ));
            }
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let options = match parse() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("fence-bench: {error}");
            return ExitCode::from(2);
        }
    };
    if options.child {
        println!("ns {}", churn(&System, options.steps, options.seed, false));
        return ExitCode::SUCCESS;
    }
    let backend = match (options.backend, vmprim::guard::works()) {
        (Some("guard"), Err(reason)) => {
            eprintln!("fence-bench: there are no guards here: {reason}; --backend mprotect needs none");
            return ExitCode::from(MISSING);
        }
        (Some("mprotect"), _) | (None, Err(_)) => {
            fence::raw::by_mprotect();
            "mprotect"
        }
        _ => "guard",
    };
    if options.verify {
        let count: usize =
            [&FENCE, &SAMPLED].iter().map(|heap| spoilt(*heap, options.steps, options.seed)).sum();
        if count > 0 {
            eprintln!("fence-bench: seed {}: {count} objects did not hold what was written", options.seed);
            return ExitCode::FAILURE;
        }
        println!("verified: {} objects held what was written", 2 * options.steps);
    }
    let rows = rows(&options);
    let mut met = true;
    let mut said = Vec::new();
    for Row { peer, what, ratio, target } in rows {
        let verdict = target.map_or(String::new(), |target| {
            met &= ratio <= target;
            format!(" (<= {target}: {})", if ratio <= target { "pass" } else { "FAIL" })
        });
        println!("{what}: {ratio:.3} of {peer}{verdict}");
        let target = target.map_or("null".to_owned(), |target| target.to_string());
        said.push(format!(
            r#"{{"application":"fence","backend":"{backend}","peer":"{peer}","what":"{what}","ratio":{ratio},"target":{target}}}"#
        ));
    }
    if let Some(path) = options.json
        && let Err(error) = std::fs::write(&path, format!("{{\"rows\":[{}]}}\n", said.join(",")))
    {
        eprintln!("fence-bench: cannot write {}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    if met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
