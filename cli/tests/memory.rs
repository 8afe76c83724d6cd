//! The suite `memory` on the command line: mistakes are one line, and nothing is built for them. What the suite does is tested
//! with its program, in `bench/memory`.

use std::process::Command;

#[test]
fn mistakes_are_a_line() {
    for (words, said) in [
        (
            &["memory", "--cpus", "2"][..],
            "of bench, memory takes --shapes, --record, --output and --json only",
        ),
        (&["memory", "--processes"], "of bench, memory takes --shapes, --record, --output and --json only"),
        (&["memory", "--", "x"], "of bench, memory takes --shapes, --record, --output and --json only"),
        (
            &["frames", "--shapes", "x"],
            "--shapes, --record and --output are about the suite memory: name it first",
        ),
        (&["--record", "1"], "--shapes, --record and --output are about the suite memory: name it first"),
        (&["matrix", "memory"], "memory is a suite by itself: cargo quire bench memory [SHAPE…]"),
        (&["memory", "--record", "self"], "self"),
        (&["memory", "--output", "x"], "--record"),
        (&["memory", "--record", "1", "--json", "x"], "--json"),
        (
            &["nothing"],
            "no suite nothing: there is mapbench, matrix, apps, bonsai, frames, memory, rcu, refcache, vmprim",
        ),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_quire")).arg("bench").args(words).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}: {error}");
        assert!(error.starts_with("quire: ") && error.contains(said), "{words:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{words:?}: {error}");
        assert!(output.stdout.is_empty(), "{words:?}");
    }
}
