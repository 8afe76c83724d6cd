//! docs/linux.md says of each system call what is served and which guest programs test it. It is made from the kernel's
//! table of calls, from bench/guest/calls.toml, and from the `// calls:` lines of the guest programs. This test fails if
//! the page is not what these make, if a call of the table is tested by no program, or if a program claims a call that its
//! source never makes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

/// Set to make the page anew.
const WRITE: &str = "QUIRE_WRITE_DOCS";
/// What to run for that.
const COMMAND: &str = "QUIRE_WRITE_DOCS=1 cargo test -p quire-cli --test calls";

/// Names by which a program makes a call, other than the call's own.
const OTHER_NAMES: &[(&str, &[&str])] = &[
    ("clone", &["pthread_create"]),
    ("eventfd2", &["eventfd"]),
    ("fchmodat2", &["452"]),
    ("futex_waitv", &["449"]),
    ("newfstatat", &["fstatat"]),
    ("set_mempolicy_home_node", &["HOME_NODE"]),
    ("pread64", &["pread"]),
    ("prlimit64", &["prlimit"]),
    ("pwrite64", &["pwrite"]),
    ("recvfrom", &["recv"]),
    ("rt_sigaction", &["sigaction"]),
    ("rt_sigprocmask", &["sigprocmask", "pthread_sigmask"]),
    ("rt_sigqueueinfo", &["sigqueue"]),
    ("rt_sigreturn", &["sigaction"]),
    ("rt_sigtimedwait", &["sigtimedwait", "sigwaitinfo"]),
    ("sched_setaffinity", &["pthread_setaffinity_np"]),
    ("sendto", &["send"]),
    ("set_tid_address", &["pthread_create"]),
    ("signalfd4", &["signalfd"]),
    ("wait4", &["waitpid", "wait_for"]),
    ("exit_group", &["_exit"]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The kernel's table: its sections in order, each a title and the calls in it.
fn served() -> Vec<(String, Vec<String>)> {
    let text = read("kernel/src/syscall/table.rs");
    let (_, list) = text.split_once("const CALLS").expect("the table of calls");
    let mut sections: Vec<(String, Vec<String>)> = Vec::new();
    for line in list.lines().map(str::trim) {
        if let Some(title) = line.strip_prefix("// ") {
            sections.push((title.to_owned(), Vec::new()));
        } else if let Some((name, _)) = line.strip_prefix("(nr::__NR_").and_then(|rest| rest.split_once(','))
        {
            sections.last_mut().expect("a section before the first call").1.push(name.to_owned());
        }
    }
    sections
}

/// The guest programs that test each call, by the `// calls:` lines at their heads.
fn tests() -> BTreeMap<String, BTreeSet<String>> {
    let mut tests: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for entry in fs::read_dir(root().join("bench/guest/c")).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "c") {
            continue;
        }
        let program = path.file_stem().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        let code: String = text.lines().filter(|line| !line.starts_with("//")).collect::<Vec<_>>().join("\n");
        for call in
            text.lines().filter_map(|line| line.strip_prefix("// calls: ")).flat_map(str::split_whitespace)
        {
            let others =
                OTHER_NAMES.iter().find(|(name, _)| *name == call).map_or(&[][..], |(_, others)| others);
            let made = [call].iter().chain(others).any(|name| has_word(&code, name));
            assert!(made, "{program}.c says that it tests {call}, but never calls it");
            tests.entry(call.to_owned()).or_default().insert(program.clone());
        }
    }
    tests
}

/// Whether `name` occurs in `code` as a word, with or without the SYS_ of a number.
fn has_word(code: &str, name: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    code.match_indices(name).any(|(at, _)| {
        let before = &code[..at];
        let before = before.strip_suffix("SYS_").unwrap_or(before);
        !before.ends_with(part) && !code[at + name.len()..].starts_with(part)
    })
}

/// bench/guest/calls.toml.
struct Facts {
    /// By number: which programs need it, and its calls.
    tiers: BTreeMap<i64, (String, Vec<String>)>,
    numbers: BTreeMap<String, i64>,
    remarks: BTreeMap<String, String>,
    absent: BTreeMap<String, String>,
    cost: Table,
}

fn facts() -> Facts {
    let mut table: Table = read("bench/guest/calls.toml").parse().unwrap();
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let texts = |table: &Table| table.iter().map(|(name, value)| (name.clone(), text(value))).collect();
    let part = |table: &mut Table, name: &str| match table.remove(name) {
        Some(Value::Table(part)) => part,
        _ => panic!("calls.toml has no [{name}]"),
    };
    let tiers = table["tier"].as_array().unwrap().iter().map(|tier| {
        let calls = tier["calls"].as_str().unwrap().split_whitespace().map(str::to_owned).collect();
        (tier["number"].as_integer().unwrap(), (text(&tier["programs"]), calls))
    });
    let tiers = tiers.collect();
    let numbers = part(&mut table, "numbers");
    Facts {
        tiers,
        numbers: numbers.iter().map(|(name, number)| (name.clone(), number.as_integer().unwrap())).collect(),
        remarks: texts(&part(&mut table, "remarks")),
        absent: texts(&part(&mut table, "absent")),
        cost: part(&mut table, "cost"),
    }
}

/// What the table, the facts and the tests say of each other that can't be.
fn contradictions(
    served: &BTreeSet<&str>,
    facts: &Facts,
    tests: &BTreeMap<String, BTreeSet<String>>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut tier_of: BTreeMap<&str, i64> = BTreeMap::new();
    for (number, (_, calls)) in &facts.tiers {
        for call in calls {
            if tier_of.insert(call, *number).is_some() {
                wrong.push(format!("{call} is in two tiers of calls.toml"));
            }
            if !served.contains(&**call) && !facts.absent.contains_key(call) {
                wrong.push(format!(
                    "{call} is in tier {number}, but is not served, and [absent] gives no reason"
                ));
            }
            if !facts.numbers.contains_key(call) {
                wrong.push(format!("[numbers] lacks {call}"));
            }
        }
    }
    for call in served {
        if !tests.contains_key(*call) {
            wrong.push(format!("{call} is served, but no guest program has it in its \"// calls:\" line"));
        }
        if !tier_of.contains_key(call) {
            wrong.push(format!("{call} is served, but in no tier of calls.toml"));
        }
        if facts.absent.contains_key(*call) {
            wrong.push(format!("{call} is served, and yet in [absent]"));
        }
    }
    let unknown = tests.keys().chain(facts.remarks.keys()).filter(|call| !served.contains(&***call));
    wrong.extend(unknown.map(|call| format!("{call} is tested or remarked upon, but not served")));
    wrong.extend(wrong_numbers(&facts.numbers));
    wrong
}

/// Numbers that the system's own header contradicts, where there is one.
fn wrong_numbers(numbers: &BTreeMap<String, i64>) -> Vec<String> {
    let Ok(header) = fs::read_to_string("/usr/include/x86_64-linux-gnu/asm/unistd_64.h") else {
        return Vec::new();
    };
    let definitions = header.lines().filter_map(|line| line.strip_prefix("#define __NR_")?.split_once(' '));
    let known: BTreeMap<_, _> = definitions.collect();
    let differ =
        |(name, number): &(&String, &i64)| known.get(&***name).is_some_and(|is| *is != number.to_string());
    numbers.iter().filter(differ).map(|(name, number)| format!("{name} is not number {number}")).collect()
}

fn page(
    sections: &[(String, Vec<String>)],
    facts: &Facts,
    tests: &BTreeMap<String, BTreeSet<String>>,
) -> String {
    let mut out = String::from(HEAD);
    let all: BTreeSet<&str> = sections.iter().flat_map(|(_, calls)| calls).map(String::as_str).collect();
    out += "| tier | programs | named | served |\n| --- | --- | ---: | ---: |\n";
    let mut named = 0;
    for (number, (programs, calls)) in &facts.tiers {
        let served = calls.iter().filter(|call| all.contains(&***call)).count();
        named += calls.len();
        let _ = writeln!(out, "| {number} | {programs} | {} | {served} |", calls.len());
    }
    let _ = writeln!(out, "| all | | {named} | {} |", all.len());
    out += "\n## Not served, though a tier names it\n\n| number | call | tier | why |\n| ---: | --- | ---: | --- |\n";
    let tier = |call: &str| {
        let found = facts.tiers.iter().find(|(_, (_, calls))| calls.iter().any(|name| name == call));
        found.map_or(String::new(), |(number, _)| number.to_string())
    };
    let number = |call: &str| facts.numbers.get(call).map_or(String::new(), i64::to_string);
    for (call, why) in &facts.absent {
        let _ = writeln!(out, "| {} | `{call}` | {} | {why} |", number(call), tier(call));
    }
    for (title, calls) in sections {
        let _ = writeln!(out, "\n## {title}\n");
        out += "| number | call | tier | tested by | what is special, or not served |\n| ---: | --- | ---: | --- | --- |\n";
        for call in calls {
            let programs: Vec<_> = tests.get(call).into_iter().flatten().map(String::as_str).collect();
            let remark = facts.remarks.get(call).map_or("", String::as_str);
            let (number, tier, programs) = (number(call), tier(call), programs.join(", "));
            let line = format!("| {number} | `{call}` | {tier} | {programs} | {remark} |");
            out += &line.replace("|  |", "| |");
            out.push('\n');
        }
    }
    out + &costs(&facts.cost)
}

fn costs(cost: &Table) -> String {
    let text = |key: &str| cost[key].as_str().expect("a text");
    let mut out = format!("\n## What calls cost\n\n{}\n\n", text("how").trim());
    let _ = writeln!(out, "Measured with {}.\n\n| what | instructions |\n| --- | ---: |", text("emulator"));
    for row in cost["instructions"].as_array().expect("rows") {
        let (what, count) = (row[0].as_str().expect("a text"), row[1].as_integer().expect("a number"));
        let _ = writeln!(out, "| {what} | {count} |");
    }
    out
}

const HEAD: &str = "# Linux's system calls in Quire

Made from the kernel's table of calls, `bench/guest/calls.toml` and the guest programs' `// calls:` lines. Don't edit it:
`QUIRE_WRITE_DOCS=1 cargo test -p quire-cli --test calls` makes it anew, and `cargo quire test host` fails if it is out of
date, or if a call of the table is tested by no program.

A call is served as Linux 6 serves it, errno included, but for what its last column says. What a tier names and Quire lacks
is in the first table after the counts; every other number is ENOSYS, and counted in `--stats`.

A program tests a call with good and with bad arguments. Each runs natively too, with the same output, so that Linux says
what is right (`bench/guest/README.md`). Beside these, `efault` gives every call that takes a pointer bad ones, and `fuzz`
makes calls at random.

";

#[test]
fn the_page_of_calls_is_up_to_date() {
    let (sections, facts, tests) = (served(), facts(), tests());
    let names: BTreeSet<&str> = sections.iter().flat_map(|(_, calls)| calls).map(String::as_str).collect();
    assert!(names.len() >= 240, "{} calls in the table: is it read as it should be?", names.len());
    let wrong = contradictions(&names, &facts, &tests);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let (page, path) = (page(&sections, &facts, &tests), root().join("docs/linux.md"));
    if std::env::var_os(WRITE).is_some() {
        fs::write(&path, &page).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    assert!(there == page, "docs/linux.md is out of date: {COMMAND}");
}

#[test]
fn a_call_that_no_program_tests_is_found() {
    let (sections, facts, mut tests) = (served(), facts(), tests());
    let mut names: BTreeSet<&str> =
        sections.iter().flat_map(|(_, calls)| calls).map(String::as_str).collect();
    tests.remove("mmap");
    names.insert("nonsense");
    names.remove("read");
    let wrong = contradictions(&names, &facts, &tests).join("\n");
    for complaint in [
        "mmap is served, but no guest program",
        "nonsense is served, but no guest program",
        "nonsense is served, but in no tier",
        "read is in tier 0, but is not served",
        "read is tested or remarked upon, but not served",
    ] {
        assert!(wrong.contains(complaint), "{complaint:?} is not in\n{wrong}");
    }
    assert!(has_word("FAILS(syscall(SYS_read, 1))", "read") && has_word("read(0)", "read"));
    assert!(!has_word("pread(0); reader(); READ", "read"));
}
