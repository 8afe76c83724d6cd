//! The report: one JSON object. `docs/exact.md` has its schema.
//!
//! The same counts make the same bytes: everything is in a fixed order, numbers are whole, and nothing is said of the
//! host or of its time.

use std::fmt::{self, Write};

use crate::{
    counts::{Counts, Ledger, Share},
    lines::{Access, Lines, Record, Set},
    options::Options,
};

/// Version of the schema.
const VERSION: u32 = 1;

/// The report's text.
pub fn json(options: &Options, cpus: u32, complete: bool, ledger: &Ledger, lines: &Lines) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = object(&mut text, options, cpus, complete, ledger, lines);
    text
}

fn object(
    text: &mut String,
    options: &Options,
    cpus: u32,
    complete: bool,
    ledger: &Ledger,
    lines: &Lines,
) -> fmt::Result {
    let Options { quantum, outside, seed, windows, .. } = options;
    write!(text, "{{\"version\":{VERSION},\"q\":{quantum},\"q_outside\":{outside},\"seed\":{seed}")?;
    write!(text, ",\"cpus\":{cpus},\"window\":\"{}\",\"complete\":{complete}", windows.name())?;
    writeln!(text, ",\"stray_markers\":{},", ledger.strays())?;
    totals(text, cpus, ledger)?;
    text.push_str(",\n\"windows\":[");
    for (i, window) in ledger.windows().iter().enumerate() {
        text.push_str(if i == 0 { "\n{\"cpus\":[" } else { ",\n{\"cpus\":[" });
        for (i, share) in window.shares.iter().enumerate() {
            text.push_str(if i == 0 { "\n" } else { ",\n" });
            one_share(text, share)?;
        }
        text.push_str("]}");
    }
    text.push_str("],\n");
    moved(text, options.lines, lines)?;
    text.push_str("}\n");
    Ok(())
}

/// Sums over all windows: of all CPUs, and of each.
fn totals(text: &mut String, cpus: u32, ledger: &Ledger) -> fmt::Result {
    let mut each = vec![(0, Counts::default(), Counts::default()); cpus as usize];
    let mut all = (0, Counts::default(), Counts::default());
    for share in ledger.windows().iter().flat_map(|window| &window.shares) {
        for sum in [&mut all, &mut each[share.cpu as usize]] {
            sum.0 += share.operations;
            sum.1.add(&share.window);
            sum.2.add(&share.operation);
        }
    }
    let sum = |text: &mut String, (operations, window, operation): &(u64, Counts, Counts)| {
        write!(text, "{{\"operations\":{operations},\"in_windows\":")?;
        counts(text, window)?;
        text.push_str(",\"in_operations\":");
        counts(text, operation)?;
        text.push('}');
        Ok(())
    };
    text.push_str("\"totals\":");
    sum(text, &all)?;
    text.push_str(",\n\"per_cpu\":[");
    for (i, one) in each.iter().enumerate() {
        text.push_str(if i == 0 { "\n" } else { ",\n" });
        sum(text, one)?;
    }
    text.push(']');
    Ok(())
}

fn one_share(text: &mut String, share: &Share) -> fmt::Result {
    let Share { cpu, opened, window, operations, operation, each } = share;
    write!(text, "{{\"cpu\":{cpu},\"opened\":{opened},\"operations\":{operations},\"in_window\":")?;
    counts(text, window)?;
    text.push_str(",\"in_operations\":");
    counts(text, operation)?;
    text.push_str(",\"each\":[");
    for (i, one) in each.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        let Counts { user, kernel, clearing, transfers, ipis, .. } = one;
        write!(text, "{comma}[{user},{kernel},{clearing},{transfers},{ipis}]")?;
    }
    text.push_str("]}");
    Ok(())
}

fn counts(text: &mut String, counts: &Counts) -> fmt::Result {
    let named = [
        ("instructions_user", counts.user),
        ("instructions_kernel", counts.kernel),
        ("clearing", counts.clearing),
        ("periodic_instructions", counts.periodic),
        ("accesses", counts.accesses),
        ("transfers", counts.transfers),
        ("user_transfers", counts.user_transfers),
        ("clearing_transfers", counts.clearing_transfers),
        ("periodic_transfers", counts.periodic_transfers),
        ("ipis", counts.ipis),
        ("periodic_ipis", counts.periodic_ipis),
    ];
    for (i, (name, n)) in named.into_iter().enumerate() {
        write!(text, "{}\"{name}\":{n}", if i == 0 { '{' } else { ',' })?;
    }
    text.push('}');
    Ok(())
}

/// The lines that moved, the first `most` of them.
fn moved(text: &mut String, most: usize, lines: &Lines) -> fmt::Result {
    let all = lines.moved();
    write!(text, "\"lines_moved\":{},\"lines\":[", all.len())?;
    for (i, (at, record)) in all.into_iter().take(most).enumerate() {
        let Record { transfers, operations, periodic, cpus, touches, by_others } = record;
        text.push_str(if i == 0 { "\n" } else { ",\n" });
        write!(text, "{{\"line\":\"{at:#x}\",\"transfers\":{transfers},\"in_operations\":{operations}")?;
        write!(text, ",\"periodic\":{periodic},\"cpus\":\"{}\"", ranges(cpus))?;
        write!(text, ",\"by_others\":{by_others},\"touched_by\":[")?;
        for (i, touch) in touches.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let access = match touch.access {
                Access::Read => "read",
                Access::Write => "write",
                Access::Update => "update",
            };
            write!(text, "{comma}{{\"pc\":\"{:#x}\",\"access\":\"{access}\"", touch.pc)?;
            write!(text, ",\"transfers\":{},\"cpus\":\"{}\"}}", touch.transfers, ranges(&touch.cpus))?;
        }
        text.push_str("]}");
    }
    text.push(']');
    Ok(())
}

/// A set as in `0-3,7`.
fn ranges(set: &Set) -> String {
    let mut text = String::new();
    let mut cpus = set.iter().peekable();
    while let Some(first) = cpus.next() {
        let mut last = first;
        while let Some(next) = cpus.next_if(|next| *next == last + 1) {
            last = next;
        }
        let comma = if text.is_empty() { "" } else { "," };
        let _ = match last == first {
            true => write!(text, "{comma}{first}"),
            false => write!(text, "{comma}{first}-{last}"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        counts::Mode,
        lines::{Account, By},
        marker::Marker,
    };

    #[test]
    fn sets_are_written_as_ranges() {
        let mut set = Set::default();
        assert_eq!(ranges(&set), "");
        for cpu in [0, 1, 2, 5, 63, 64, 255] {
            set.insert(cpu);
        }
        assert_eq!(ranges(&set), "0-2,5,63-64,255");
    }

    #[test]
    fn a_small_run_is_written_in_full() {
        let mut ledger = Ledger::new(2);
        let mut lines = Lines::new();
        ledger.mark(1, Marker::WindowBegin);
        ledger.mark(1, Marker::OperationBegin);
        ledger.executed(1, [3, 4, 0], 2);
        lines.access(0x1000, By { cpu: 0, pc: 0x10, access: Access::Write });
        let by = By { cpu: 1, pc: 0x20, access: Access::Read };
        let moved = lines.access(0x1000, by).unwrap();
        assert_eq!(ledger.transfer(1, Mode::User), Some(Account::Operation));
        lines.record(0x1000, by, moved, Account::Operation);
        ledger.mark(1, Marker::OperationEnd);
        let options = Options::parse(["quantum=50"].into_iter()).unwrap();
        let zero = "{\"instructions_user\":0,\"instructions_kernel\":0,\"clearing\":0,\"periodic_instructions\":0,\
                    \"accesses\":0,\"transfers\":0,\"user_transfers\":0,\"clearing_transfers\":0,\"periodic_transfers\":0,\"ipis\":0,\"periodic_ipis\":0}";
        let some = zero
            .replace("instructions_user\":0", "instructions_user\":3")
            .replace("kernel\":0", "kernel\":4")
            .replace("accesses\":0", "accesses\":2")
            .replace("\"transfers\":0", "\"transfers\":1")
            .replace("user_transfers\":0", "user_transfers\":1");
        let expected = format!(
            "{{\"version\":1,\"q\":50,\"q_outside\":5000,\"seed\":1,\"cpus\":2,\"window\":\"marked\",\
             \"complete\":true,\"stray_markers\":0,\n\
             \"totals\":{{\"operations\":1,\"in_windows\":{some},\"in_operations\":{some}}},\n\
             \"per_cpu\":[\n{{\"operations\":0,\"in_windows\":{zero},\"in_operations\":{zero}}},\n\
             {{\"operations\":1,\"in_windows\":{some},\"in_operations\":{some}}}],\n\
             \"windows\":[\n{{\"cpus\":[\n\
             {{\"cpu\":1,\"opened\":1,\"operations\":1,\"in_window\":{some},\"in_operations\":{some},\
             \"each\":[[3,4,0,1,0]]}}]}}],\n\
             \"lines_moved\":1,\"lines\":[\n\
             {{\"line\":\"0x1000\",\"transfers\":1,\"in_operations\":1,\"periodic\":0,\"cpus\":\"0-1\",\"by_others\":0,\"touched_by\":[\
             {{\"pc\":\"0x10\",\"access\":\"write\",\"transfers\":0,\"cpus\":\"0\"}},\
             {{\"pc\":\"0x20\",\"access\":\"read\",\"transfers\":1,\"cpus\":\"1\"}}]}}]}}\n"
        );
        assert_eq!(json(&options, 2, true, &ledger, &lines), expected);
    }
}
