//! Programs in C that know nothing of the library: planted overflows are found, with stacks, and Debian's own programs run
//! as they do without it.

use std::{
    io::Write,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// Say it past the harness, which shows what tests print only where they fail.
fn say(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// A program with a bug for each number, on an object of so many bytes.
const SOURCE: &str = r#"
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
#include <malloc.h>
static volatile char sink;
__attribute__((noinline)) char *make(size_t n) { char *p = malloc(n); memset(p, 1, n); return p; }
__attribute__((noinline)) void drop(char *p) { free(p); }
__attribute__((noinline)) void commit(int bug, char *p, size_t n) {
    switch (bug) {
    case 0: sink = ((volatile char *)p)[(n + 15) / 16 * 16]; break;
    case 1: ((volatile char *)p)[(n + 15) / 16 * 16] = 1; break;
    case 2: ((volatile char *)p)[n] = 1; drop(p); break;
    case 3: { static char from[4096]; memcpy(p, from, n + 64); break; }
    case 4: drop(p); sink = ((volatile char *)p)[0]; break;
    case 5: drop(p); ((volatile char *)p)[n / 2] = 1; break;
    case 6: drop(p); drop(p); break;
    case 7: free(p + 1); break;
    case 8: { char *q = realloc(p, n / 2 + 1); sink = ((volatile char *)p)[0]; free(q); break; }
    case 9: { volatile char *q = calloc(n, 3); q[(3 * n + 15) / 16 * 16 + 5] = 1; break; }
    case 10: ((volatile char *)p)[-1] = 1; drop(p); break;
    case 11: { void *q = NULL; if (posix_memalign(&q, 64, n)) exit(9); ((volatile char *)q)[(n + 63) / 64 * 64] = 1; break; }
    case 12: { volatile char *q = strdup("sixteen letters."); sink = q[32]; break; }
    case 13: strcat(memset(p, 'x', n), "y"); break;
    }
}
int main(int argc, char **argv) {
    int bug = atoi(argv[1]); size_t n = atoi(argv[2]);
    char *p = make(n);
    if (malloc_usable_size(p) < n) return 8;
    commit(bug, p, n);
    puts("went on");
    return 0;
}
"#;
const BUGS: [(&str, &str); 14] = [
    ("read past", "fence: read"),
    ("write past", "fence: write"),
    ("a tail", "bytes past the end were written"),
    ("copy past", "bytes past the end of"),
    ("read after free", "fence: read after free"),
    ("write after free", "fence: write after free"),
    ("free twice", "fence: free of what was freed"),
    ("free the middle", "fence: free of what is not an object"),
    ("read after realloc", "fence: read after free"),
    ("past calloc's", "bytes past the end of"),
    ("before", "before the start"),
    ("past posix_memalign's", "bytes past the end of"),
    ("past strdup's", "bytes past the end of"),
    ("a string without an end", "fence: "),
];

/// The library, which cargo has built beside the tests.
fn library() -> PathBuf {
    let folder = std::env::current_exe().unwrap();
    let folder = folder.parent().unwrap();
    let name = "libfence_preload.so";
    [folder.join(name), folder.parent().unwrap().join(name)].into_iter().find(|path| path.exists()).unwrap()
}

fn under(program: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(words).env("LD_PRELOAD", library()).env("LC_ALL", "C").stdin(Stdio::null());
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn planted_overflows_are_found_with_stacks() {
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("bugs.c"), folder.path().join("bugs"));
    std::fs::write(&source, SOURCE).unwrap();
    let built = Command::new("gcc")
        .args(["-O1", "-w", "-fno-builtin", "-rdynamic", "-o"])
        .args([&program, &source])
        .output();
    if !built.as_ref().is_ok_and(|built| built.status.success()) {
        say(&format!("left out: no C compiler: {built:?}"));
        return;
    }
    let mut found = 0;
    for size in [1, 16, 100, 4090, 5000] {
        for (number, (bug, what)) in BUGS.iter().enumerate() {
            let (number, size) = (number.to_string(), size.to_string());
            // Without the slack an object's end is a guard whatever its size.
            let exact = if *bug == "a tail" || *bug == "a string without an end" { "1" } else { "16" };
            let output = under(&program, &[&number, &size]).env("FENCE_ALIGN", exact).output().unwrap();
            let said = said(&output);
            let signal = output.status.signal();
            let what = if exact == "1" { "fence: " } else { *what };
            let is_found = matches!(signal, Some(libc::SIGSEGV | libc::SIGABRT)) && said.contains(what);
            assert!(is_found, "{bug} of {size}: {:?}\n{said}", output.status);
            let is_of_it = said.contains(&format!("an object of {size} bytes"))
                || ["past calloc's", "past posix_memalign's", "past strdup's"].contains(bug);
            assert!(is_of_it || *bug == "a string without an end", "{bug} of {size}: {said}");
            assert!(
                said.contains("it was allocated:")
                    && (said.contains(" make+") || !is_of_it || said.contains("commit+")),
                "{said}"
            );
            if said.contains("after free") && !bug.contains("realloc") {
                assert!(said.contains("it was freed:") && said.contains(" drop+"), "{bug}: {said}");
            }
            found += 1;
        }
    }
    println!("{found} planted bugs, all found");
}

#[test]
fn debian_s_programs_run_as_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text");
    let lines: String = (0..2000).map(|i| format!("line {}\n", i * 7919 % 2003)).collect();
    std::fs::write(&text, lines).unwrap();
    let text = text.to_str().unwrap();
    let python = "import json,sys; d={str(i): list(range(i % 50)) for i in range(2000)}; s=json.dumps(d); \
                  assert json.loads(s)==d; print(len(s), sum(map(len, s.split(','))))";
    let programs: [(&str, &[&str]); 6] = [
        ("/bin/ls", &["-l", "/usr/bin"]),
        ("/usr/bin/sort", &["-k2n", text]),
        ("/bin/sh", &["-c", "seq 300 | sort -r | head -3; (echo child; exit 3); echo $?"]),
        ("/usr/bin/awk", &["{ n[$2 % 100] += $2 } END { for (i in n) s += n[i]; print s }", text]),
        (
            "/usr/bin/perl",
            &["-e", "my %h; $h{$_ % 997} .= $_ for 1..20000; print scalar(keys %h), length($h{5}), \"\\n\""],
        ),
        ("/usr/bin/python3", &["-c", python]),
    ];
    let mut run = 0;
    for (program, words) in programs {
        let program = Path::new(program);
        if !program.exists() {
            say(&format!("left out: {} is not installed", program.display()));
            continue;
        }
        let plain =
            Command::new(program).args(words).env("LC_ALL", "C").stdin(Stdio::null()).output().unwrap();
        for rate in ["1", "50"] {
            let fenced = under(program, words).env("FENCE_RATE", rate).output().unwrap();
            assert!(fenced == plain, "{}: {:?}\n{}", program.display(), fenced.status, said(&fenced));
        }
        run += 1;
    }
    assert!(run >= 3, "{run} programs");
}
