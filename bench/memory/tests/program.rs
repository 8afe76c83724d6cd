//! The program as a program: what it prints and writes, and that each mistake is one line.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

const SMALL: &str = "quire-shape 1\nabout a test\nmap 400 410 r-xp file 1 0 -\nmap 1000 1100 rw-p anon 0 0 -\n\
    res 400 408\nres 1000 1080\n";

fn memory(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_memory")).args(words).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_folder_of_shapes_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("small.txt"), SMALL).unwrap();
    fs::write(folder.path().join("README.md"), "not a shape").unwrap();
    let json = folder.path().join("out.json");
    let output = memory(&["small", "--shapes", text(folder.path()), "--json", text(&json)]);
    assert!(output.status.success(), "{output:?}");
    let shown = String::from_utf8(output.stdout).unwrap();
    assert_eq!(shown.lines().next().unwrap().trim(), "small");
    assert!(shown.contains("radix: M1 at most 0.80"), "{shown}");
    let all: serde_json::Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    assert_eq!((&all["program"], &all["version"]), (&"memory".into(), &1.into()));
    let shape = &all["shapes"][0];
    assert_eq!((&shape["mappings"], &shape["resident_pages"]), (&2.into(), &0x88.into()));
    // Two places in one region of the address space: a page of each level, and two leaf tables.
    assert_eq!(shape["linux"]["table_bytes"], 5 * 4096);
    for design in ["radix", "locked"] {
        let found = &shape["designs"][design];
        let bytes = |name: &str| found[name].as_u64().unwrap();
        assert!(bytes("empty_bytes") < bytes("mapped_bytes"), "{found}");
        assert!(bytes("mapped_bytes") <= bytes("metadata_bytes"), "{found}");
    }
}

#[test]
fn what_is_recorded_can_be_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("this.txt");
    // A process that does nothing, once it has begun.
    let mut quiet = Command::new("sleep").arg("1000").spawn().unwrap();
    let id = quiet.id().to_string();
    let settled = (0..100).any(|_| memory(&["--record", &id, "--output", text(&file)]).status.success());
    quiet.kill().unwrap();
    quiet.wait().unwrap();
    assert!(settled);
    let output = memory(&["this", "--shapes", text(folder.path())]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn each_mistake_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bad.txt");
    let bad = text(folder.path());
    let says = |words: &[&str], said: &str| {
        let output = memory(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {output:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.starts_with("memory: ") && error.contains(said), "{words:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(output.stdout.is_empty());
    };
    says(&["--shapes", bad], "there is no shape in it");
    for (contents, said) in [
        (&b"hello"[..], "bad.txt: line 1: not a shape"),
        (b"quire-shape 9\n", "version 9 of the format is not known"),
        (b"quire-shape 1\nmap 5 4 rw-p anon 0 0 -\n", "line 2: 5 to 4 is no range of pages"),
        (b"\xff\xfe", "bad.txt: "),
        (b"# process shape: x\nmap 5 6 rw-p 0\n", "line 2: a mapping has 6 words"),
    ] {
        fs::write(&file, contents).unwrap();
        says(&["--shapes", bad], said);
    }
    // A shape that no address space can have.
    fs::write(&file, "quire-shape 1\nmap 1 2 rw-p anon 0 0 -\n").unwrap();
    says(&["bad", "--shapes", bad], "bad: radix: mapping pages 1 to 2: TooLow");
    says(&["--record", "4294967295"], "there is no process 4294967295");
    says(&["--record", "self"], "invalid value 'self'");
    says(&["--output", "x"], "required arguments");
    says(&["no-such-shape"], "no shape no-such-shape: there is chromium");
    says(&["--json", "/nowhere/at/all", "python3"], "/nowhere/at/all: No such file");
}
