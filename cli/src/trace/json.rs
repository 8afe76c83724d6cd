//! The report as JSON. `docs/trace.md` has the schema.

use serde_json::{Value, json};

use super::report::{Executed, Line, Object, Report, Touch};

/// Version of the schema.
const VERSION: u32 = 1;
/// So many lines are written; the objects are the sums of many more.
const LINES: usize = 1000;

/// All of the report.
pub fn value(report: &Report) -> Value {
    let windows =
        report.windows.iter().map(|lines| json!({ "lines": lines.iter().map(line).collect::<Vec<_>>() }));
    json!({
        "version": VERSION,
        "cpus": report.cpus,
        "q": report.quantum,
        "seed": report.seed,
        "window": if report.whole_run { "run" } else { "marked" },
        "complete": report.complete,
        "operations": report.operations,
        "transfers": report.transfers,
        "in_operations": report.in_operations,
        "lines_moved": report.lines_moved,
        "instructions": report.instructions,
        "objects": report.objects.iter().map(object).collect::<Vec<_>>(),
        "lines": report.lines.iter().take(LINES).map(line).collect::<Vec<_>>(),
        "functions": report.functions.iter().map(function).collect::<Vec<_>>(),
        "windows": windows.collect::<Vec<_>>(),
    })
}

fn object(object: &Object) -> Value {
    let Object { name, kind, lines, transfers, in_operations } = object;
    json!({ "name": name, "kind": kind.key(), "lines": lines, "transfers": transfers, "in_operations": in_operations })
}

fn function(function: &Executed) -> Value {
    let Executed { name, instructions, in_operations, periodic } = function;
    json!({ "name": name, "instructions": instructions, "in_operations": in_operations, "periodic": periodic })
}

fn line(line: &Line) -> Value {
    json!({
        "line": line.at,
        "name": line.name.what,
        "offset": line.name.offset,
        "kind": line.name.kind.key(),
        "transfers": line.transfers,
        "in_operations": line.in_operations,
        "periodic": line.periodic,
        "cpus": line.cpus.to_string(),
        "user_address": address(line.user_address),
        "kernel_address": address(line.kernel_address),
        "by_others": line.by_others,
        "touched_by": line.touches.iter().map(touch).collect::<Vec<_>>(),
    })
}

fn touch(touch: &Touch) -> Value {
    let functions = touch.functions.iter().map(|f| json!({ "name": f.name, "place": f.place }));
    json!({
        "pc": format!("{:#x}", touch.pc),
        "access": touch.access,
        "address": touch.address.and_then(address),
        "part": touch.part,
        "transfers": touch.transfers,
        "cpus": touch.cpus.to_string(),
        "functions": functions.collect::<Vec<_>>(),
    })
}

fn address(at: u64) -> Option<String> {
    (at != 0).then(|| format!("{at:#x}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::report::sample;

    #[test]
    fn everything_is_there_by_name() {
        let all = value(&sample::report());
        assert_eq!(
            (&all["operations"], &all["transfers"], &all["window"]),
            (&json!(10), &json!(63), &json!("marked"))
        );
        let first = &all["lines"][0];
        assert_eq!(first["name"], "address space of PID 2: lock");
        assert_eq!((&first["kind"], &first["offset"]), (&json!("kernel_object"), &json!(8)));
        assert_eq!(
            (&first["user_address"], &first["kernel_address"]),
            (&Value::Null, &json!("0xffff800000400170"))
        );
        assert_eq!(first["cpus"], "0-3");
        let touch = &first["touched_by"][1];
        assert_eq!(touch["part"], "mappings");
        assert_eq!(
            touch["functions"][0],
            json!({ "name": "sched::steal", "place": "kernel/src/sched.rs:7" })
        );
        assert_eq!(all["windows"][0]["lines"][0]["transfers"], 4);
        assert_eq!(
            all["functions"][1],
            json!({ "name": "main", "instructions": 90, "in_operations": 80, "periodic": 0 })
        );
        assert_eq!(all["objects"][2]["kind"], "user");
    }
}
