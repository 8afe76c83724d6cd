//! What the tracer counted, with names in place of addresses.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    cpus::Cpus,
    names::{Kind, Name, Names},
    source::Function,
};

/// Everything there is to show.
pub struct Report {
    /// How many CPUs the machine had.
    pub cpus: u64,
    /// Instructions of a turn.
    pub quantum: u64,
    /// The emulator's seed.
    pub seed: u64,
    /// Whether the whole run was one window.
    pub whole_run: bool,
    /// Whether all windows were seen from their beginning.
    pub complete: bool,
    /// How many operations ended.
    pub operations: u64,
    /// All transfers.
    pub transfers: u64,
    /// Of these, in operations.
    pub in_operations: u64,
    /// How many lines moved.
    pub lines_moved: u64,
    /// Those that moved most, these first: in operations if there are any, else in all.
    pub lines: Vec<Line>,
    /// The same by what they are part of.
    pub objects: Vec<Object>,
    /// Instructions by function.
    pub functions: Vec<Executed>,
    /// All instructions that were counted.
    pub instructions: u64,
    /// The lines of each window, in the order in which they opened.
    pub windows: Vec<Vec<Line>>,
}

/// A line that moved.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its first byte in the emulator's RAM, in hexadecimal.
    pub at: String,
    /// What it is.
    pub name: Name,
    /// How often it moved.
    pub transfers: u64,
    /// Of these, in operations.
    pub in_operations: u64,
    /// Of these, in periodic work.
    pub periodic: u64,
    /// The CPUs at either end of its transfers.
    pub cpus: Cpus,
    /// Virtual addresses by which it was accessed last, 0 for none.
    pub user_address: u64,
    /// See above.
    pub kernel_address: u64,
    /// Who touched it, who moved it most first.
    pub touches: Vec<Touch>,
    /// Transfers by others than those.
    pub by_others: u64,
}

/// An instruction that touched a line.
#[derive(Clone, Debug)]
pub struct Touch {
    /// Its address.
    pub pc: u64,
    /// The functions that it is in, the innermost first.
    pub functions: Vec<Function>,
    /// `read`, `write` or `update`.
    pub access: String,
    /// The virtual address that it accessed last when it moved the line, if it did.
    pub address: Option<u64>,
    /// What lies there, if that is not what the line has its name of.
    pub part: Option<String>,
    /// How often it moved the line.
    pub transfers: u64,
    /// On which CPUs.
    pub cpus: Cpus,
}

/// Lines of one name, or of names that differ in numbers only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// What they are.
    pub name: String,
    /// What sort of thing.
    pub kind: Kind,
    /// How many of them there are among the lines.
    pub lines: u64,
    /// How often they moved.
    pub transfers: u64,
    /// Of these, in operations.
    pub in_operations: u64,
}

/// What was executed of a function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Executed {
    /// The function that holds the instructions, with whatever is inlined in it.
    pub name: String,
    /// Instructions, without those of periodic work.
    pub instructions: u64,
    /// Of these, in operations.
    pub in_operations: u64,
    /// Instructions of periodic work.
    pub periodic: u64,
}

impl Report {
    /// Put names to the tracer's `counted`.
    pub fn new(counted: &str, names: &Names) -> Result<Self> {
        let counted: Value = serde_json::from_str(counted).context("the tracer's counts are not JSON")?;
        let mut reader = Reader { names, known: HashMap::new() };
        let total = |key: &str| number(&counted["totals"]["in_windows"][key]);
        let operations = number(&counted["totals"]["operations"]);
        let mut lines = reader.lines(&counted["lines"]);
        if operations > 0 {
            lines.sort_by_key(|line| Reverse((line.in_operations, line.transfers)));
        }
        let windows = list(&counted["windows"]).map(|window| reader.lines(&window["lines"])).collect();
        Ok(Self {
            cpus: number(&counted["cpus"]),
            quantum: number(&counted["q"]),
            seed: number(&counted["seed"]),
            whole_run: counted["window"] == "run",
            complete: counted["complete"] != Value::Bool(false),
            operations,
            transfers: total("transfers") + total("periodic_transfers"),
            in_operations: number(&counted["totals"]["in_operations"]["transfers"]),
            lines_moved: number(&counted["lines_moved"]),
            objects: objects(&lines, operations > 0),
            lines,
            functions: functions(&counted, names, operations > 0),
            instructions: ["instructions_user", "instructions_kernel", "clearing", "periodic_instructions"]
                .map(total)
                .iter()
                .sum(),
            windows,
        })
    }

    /// What is compared: transfers in operations if there are any, else all.
    pub fn weight(&self, transfers: u64, in_operations: u64) -> u64 {
        if self.operations > 0 { in_operations } else { transfers }
    }

    /// The weight of everything.
    pub fn total(&self) -> u64 {
        self.weight(self.transfers, self.in_operations)
    }

    /// The weight of the lines that moved and are not among [`Self::lines`].
    pub fn unlisted(&self) -> u64 {
        let listed: u64 = self.lines.iter().map(|line| self.weight(line.transfers, line.in_operations)).sum();
        self.total().saturating_sub(listed)
    }
}

/// Reads lines, and names each instruction once.
struct Reader<'a> {
    names: &'a Names,
    known: HashMap<u64, Vec<Function>>,
}

impl Reader<'_> {
    fn lines(&mut self, lines: &Value) -> Vec<Line> {
        list(lines).map(|line| self.line(line)).collect()
    }

    fn line(&mut self, line: &Value) -> Line {
        let (user_address, kernel_address) =
            (address(&line["user_address"]), address(&line["kernel_address"]));
        let mut touches: Vec<_> = list(&line["touched_by"]).map(|touch| self.touch(touch)).collect();
        touches.sort_by_key(|touch| Reverse(touch.transfers));
        let chains: Vec<_> = touches.iter().map(|touch| touch.functions.clone()).collect();
        // What is accessed most gives the line its name.
        let most = |kernel: bool, otherwise| {
            let addresses = touches.iter().filter_map(|touch| touch.address);
            addresses.clone().find(|at| (at >> 63 != 0) == kernel).unwrap_or(otherwise)
        };
        let (kernel, user) = (most(true, kernel_address), most(false, user_address));
        let mut name = self.names.line(kernel, user, &chains);
        if name.kind == Kind::KernelHeap {
            name.what += &used_by(&chains);
        }
        for touch in &mut touches {
            let Some(at) = touch.address else { continue };
            let (kernel, user) = if at >> 63 != 0 { (at, user) } else { (kernel, at) };
            let part = self.names.line(kernel, user, &chains).what;
            touch.part = (part != name.what).then(|| within(&part, &name.what));
        }
        Line {
            at: line["line"].as_str().unwrap_or("?").to_owned(),
            name,
            transfers: number(&line["transfers"]),
            in_operations: number(&line["in_operations"]),
            periodic: number(&line["periodic"]),
            cpus: Cpus::parse(line["cpus"].as_str().unwrap_or("")),
            user_address,
            kernel_address,
            touches,
            by_others: number(&line["by_others"]),
        }
    }

    fn touch(&mut self, touch: &Value) -> Touch {
        let pc = address(&touch["pc"]);
        let functions = self.known.entry(pc).or_insert_with(|| self.names.functions(pc)).clone();
        Touch {
            pc,
            functions,
            access: touch["access"].as_str().unwrap_or("?").to_owned(),
            address: Some(address(&touch["address"])).filter(|at| *at != 0),
            part: None,
            transfers: number(&touch["transfers"]),
            cpus: Cpus::parse(touch["cpus"].as_str().unwrap_or("")),
        }
    }
}

/// What can be said of a piece of the heap by the functions that touched it.
fn used_by(chains: &[Vec<Function>]) -> String {
    let functions = || chains.iter().flatten();
    match functions().find_map(|function| module(&function.place)) {
        Some(module) => format!(", used by {module}"),
        None if functions().any(|f| f.name.contains("::btree::")) => ", node of an ordered map".to_owned(),
        None => String::new(),
    }
}

/// The module of the workspace's that a place in its source is in; none for those that everybody uses.
fn module(place: &str) -> Option<String> {
    const EVERYBODYS: [&str; 5] =
        ["crates/sync/", "crates/percpu/", "crates/addr/", "kernel/src/memory", "kernel/src/hw/irq"];
    if EVERYBODYS.iter().any(|path| place.starts_with(path)) {
        return None;
    }
    let (name, file) = match place.strip_prefix("kernel/src/") {
        Some(file) => (None, file),
        None => place.strip_prefix("crates/")?.split_once("/src/").map(|(name, file)| (Some(name), file))?,
    };
    let file = file.split(".rs:").next().unwrap_or(file).replace('/', "::");
    let file = file.strip_suffix("::mod").unwrap_or(&file);
    Some(match (name, file) {
        (Some(name), "lib") => name.to_owned(),
        (Some(name), file) => format!("{name}::{file}"),
        (None, file) => file.to_owned(),
    })
}

/// The name of a part; without that of the object if the line has its name of another part of the same.
fn within(part: &str, line: &str) -> String {
    match (part.split_once(": "), line.split_once(": ")) {
        (Some((object, part)), Some((same, _))) if object == same => part.to_owned(),
        _ => part.to_owned(),
    }
}

/// The lines by what they are part of.
fn objects(lines: &[Line], by_operation: bool) -> Vec<Object> {
    let mut all: BTreeMap<String, Object> = BTreeMap::new();
    for line in lines {
        let Name { what, kind, .. } = &line.name;
        let name = common(what);
        let what = what.split(" (and ").next().unwrap_or(what);
        let object = all.entry(name.clone()).or_insert_with(|| Object {
            name: what.to_owned(),
            kind: *kind,
            lines: 0,
            transfers: 0,
            in_operations: 0,
        });
        if object.name != what {
            object.name = name;
        }
        object.lines += 1;
        object.transfers += line.transfers;
        object.in_operations += line.in_operations;
    }
    let mut all: Vec<_> = all.into_values().collect();
    all.sort_by_key(|object| {
        Reverse(if by_operation { (object.in_operations, object.transfers) } else { (object.transfers, 0) })
    });
    all
}

/// A name without the numbers that tell its kind apart: `thread N: scheduling`.
pub fn common(what: &str) -> String {
    let what = what.split(" (and ").next().unwrap_or(what);
    let what = what.split(" around 0x").next().unwrap_or(what);
    let number = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    let words = what.split(' ').map(|word| match word.strip_suffix(':') {
        Some(id) if number(id) => "N:",
        None if number(word) => "N",
        _ => word,
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Instructions by function.
fn functions(counted: &Value, names: &Names, by_operation: bool) -> Vec<Executed> {
    let mut all: BTreeMap<String, Executed> = BTreeMap::new();
    let mut add = |name: String, block: &Value| {
        let sum = all.entry(name.clone()).or_insert_with(|| Executed { name, ..Executed::default() });
        sum.instructions += number(&block["instructions"]);
        sum.in_operations += number(&block["in_operations"]);
        sum.periodic += number(&block["periodic"]);
    };
    for block in list(&counted["profile"]) {
        let found = names.functions(address(&block["pc"]));
        add(found.last().map_or("?".to_owned(), |function| function.name.clone()), block);
    }
    if number(&counted["profile_other"]["blocks"]) > 0 {
        add("other blocks".to_owned(), &counted["profile_other"]);
    }
    let mut all: Vec<_> = all.into_values().collect();
    all.sort_by_key(|f| {
        Reverse(if by_operation {
            (f.in_operations, f.instructions)
        } else {
            (f.instructions + f.periodic, 0)
        })
    });
    all
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// An address as the tracer writes it; 0 if there is none.
fn address(value: &Value) -> u64 {
    let digits = value.as_str().and_then(|text| text.strip_prefix("0x"));
    digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0)
}

/// A recorded sample, small enough to check by hand.
#[cfg(test)]
pub mod sample {
    use super::*;
    use crate::{
        record::Place,
        trace::{names::Names, source::Source},
    };

    const COUNTED: &str = r#"{"version":1,"q":200,"q_outside":5000,"seed":1,"cpus":4,"window":"marked","complete":true,
        "totals":{"operations":10,"in_windows":{"instructions_user":100,"instructions_kernel":900,"transfers":60,
        "periodic_transfers":3},"in_operations":{"transfers":50}},
        "windows":[{"cpus":[],"lines_moved":1,"lines":[
         {"line":"0x400140","transfers":4,"in_operations":4,"periodic":0,"kernel_address":"0xffff800000400148",
          "by_others":0,"touched_by":[]}]}],
        "lines_moved":4,"lines":[
         {"line":"0x400140","transfers":40,"in_operations":38,"periodic":0,"cpus":"0-3","kernel_address":"0xffff800000400170",
          "by_others":1,"touched_by":[
          {"pc":"0xffffffff80200000","access":"write","transfers":0,"cpus":"0-2"},
          {"pc":"0xffffffff80200010","access":"update","address":"0xffff800000400148","transfers":30,"cpus":"0-3"},
          {"pc":"0xffffffff80200020","access":"read","address":"0xffff800000400170","transfers":9,"cpus":"1"}]},
         {"line":"0x500000","transfers":20,"in_operations":0,"periodic":3,"user_address":"0x2004","by_others":0,
          "touched_by":[{"pc":"0x1100","access":"write","address":"0x2004","transfers":20,"cpus":"2"}]},
         {"line":"0x600000","transfers":3,"in_operations":2,"periodic":0,"kernel_address":"0xffff800000400340",
          "by_others":0,"touched_by":[]}],
        "profile":[{"pc":"0xffffffff80200010","instructions":700,"in_operations":500,"periodic":1},
                   {"pc":"0xffffffff80200018","instructions":100,"in_operations":50,"periodic":0},
                   {"pc":"0x1100","instructions":90,"in_operations":80,"periodic":0}],
        "profile_other":{"blocks":3,"instructions":10,"in_operations":0,"periodic":0}}"#;

    struct Kernel;
    impl Source for Kernel {
        fn functions(&self, pc: u64) -> Vec<Function> {
            let function =
                |name: &str, place: &str| Function { name: name.to_owned(), place: place.to_owned() };
            match pc & 0xff {
                0x10..0x20 => vec![
                    function("fetch_add", "library/core/src/sync/atomic.rs:1"),
                    function("spin::lock", "crates/sync/src/spin.rs:5"),
                    function("aspace::locked::Locked::fault", "crates/aspace/src/locked.rs:9"),
                ],
                _ => vec![function("sched::steal", "kernel/src/sched.rs:7")],
            }
        }
        fn object(&self, _: u64) -> Option<(String, u64)> {
            None
        }
    }

    struct User;
    impl Source for User {
        fn functions(&self, _: u64) -> Vec<Function> {
            vec![Function { name: "main".to_owned(), place: String::new() }]
        }
        fn object(&self, address: u64) -> Option<(String, u64)> {
            (0x2000..0x2040).contains(&address).then(|| ("counter".to_owned(), address - 0x2000))
        }
    }

    /// The sample's report.
    pub fn report() -> Report {
        let place = |start, end, name: &str| Place { start, end, stride: 0, name: name.to_owned() };
        let base = 0xffff_8000_0040_0000;
        let places = vec![
            place(base + 0x140, base + 0x160, "address space of PID 2: lock"),
            place(base + 0x160, base + 0x1a0, "address space of PID 2: mappings"),
            place(base + 0x300, base + 0x400, "thread 3"),
        ];
        let names = Names::from_sources(Box::new(Kernel), places, Some(Box::new(User)));
        Report::new(COUNTED, &names).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_named_by_what_is_accessed_most() {
        let report = sample::report();
        let names: Vec<_> = report.lines.iter().map(|line| (&*line.name.what, line.in_operations)).collect();
        let expected = [("address space of PID 2: lock", 38), ("thread 3", 2), ("counter (p)", 0)];
        assert_eq!(names, expected);
        let touches = &report.lines[0].touches;
        let seen: Vec<_> = touches.iter().map(|t| (t.transfers, t.part.as_deref())).collect();
        assert_eq!(seen, [(30, None), (9, Some("mappings")), (0, None)]);
        assert_eq!((report.transfers, report.total(), report.instructions), (63, 50, 1000));
        assert_eq!(report.windows[0][0].name.what, "address space of PID 2: lock");
    }

    #[test]
    fn instructions_are_added_up_by_function() {
        let functions = sample::report().functions;
        let sums: Vec<_> = functions.iter().map(|f| (&*f.name, f.instructions, f.in_operations)).collect();
        let expected =
            [("aspace::locked::Locked::fault", 800, 550), ("main", 90, 80), ("other blocks", 10, 0)];
        assert_eq!(sums, expected);
        assert_eq!(functions[0].periodic, 1);
    }

    #[test]
    fn the_heap_is_named_after_who_uses_it() {
        for (place, name) in [
            ("crates/aspace/src/mapping.rs:70", Some("aspace::mapping")),
            ("crates/pagetable/src/lib.rs:7", Some("pagetable")),
            ("kernel/src/file/pipe.rs:7", Some("file::pipe")),
            ("kernel/src/file/mod.rs:7", Some("file")),
            ("kernel/src/memory.rs:7", None),
            ("crates/sync/src/spin.rs:7", None),
            ("library/alloc/src/vec.rs:7", None),
            ("", None),
        ] {
            assert_eq!(module(place).as_deref(), name, "{place}");
        }
        let function = |name: &str, place: &str| Function { name: name.to_owned(), place: place.to_owned() };
        let node = function(
            "alloc::collections::btree::search::find",
            "library/alloc/src/collections/btree/search.rs:1",
        );
        assert_eq!(used_by(&[vec![node.clone()]]), ", node of an ordered map");
        let find = function("mapping::find", "crates/aspace/src/mapping.rs:3");
        assert_eq!(used_by(&[vec![node], vec![find]]), ", used by aspace::mapping");
        assert_eq!(used_by(&[]), "");
    }

    #[test]
    fn objects_of_a_kind_are_one() {
        for (one, kind) in [
            ("thread 3: scheduling", "thread N: scheduling"),
            ("run queue of CPU 12", "run queue of CPU N"),
            ("address space of PID 4: lock (and 2 before)", "address space of PID N: lock"),
            ("program's mapping around 0x7f0000000000", "program's mapping"),
            ("memory::FRAMES", "memory::FRAMES"),
        ] {
            assert_eq!(common(one), kind);
        }
        let objects = sample::report().objects;
        let seen: Vec<_> = objects.iter().map(|o| (&*o.name, o.lines, o.transfers)).collect();
        let expected = [("address space of PID 2: lock", 1, 40), ("thread 3", 1, 3), ("counter (p)", 1, 20)];
        assert_eq!(seen, expected);
    }
}
