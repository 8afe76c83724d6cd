//! The report: one JSON object. `docs/exact.md` has its schema, and `docs/trace.md` that of lines and profile.
//!
//! The same counts make the same bytes: everything is in a fixed order, numbers are whole, and nothing is said of the
//! host or of its time.

use std::fmt::{self, Write};

use crate::{
    counts::{Counts, Ledger, Share},
    lines::{Access, Lines, Record, Set},
    options::Options,
    profile::{Block, Profile},
};

/// Version of the schema.
const VERSION: u32 = 1;

/// What there is to report.
pub struct Seen<'a> {
    /// The counts.
    pub ledger: &'a Ledger,
    /// The lines that moved; the last window has ended.
    pub lines: &'a Lines,
    /// The instructions by block.
    pub profile: &'a Profile,
}

/// The report's text.
pub fn json(options: &Options, cpus: u32, complete: bool, seen: &Seen<'_>) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = object(&mut text, options, cpus, complete, seen);
    text
}

fn object(text: &mut String, options: &Options, cpus: u32, complete: bool, seen: &Seen<'_>) -> fmt::Result {
    let Seen { ledger, lines, profile } = seen;
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
        text.push_str("],");
        let own = lines.windows().get(i);
        let most = own.map_or(&[][..], |own| &own.most).iter().map(|(at, record)| (*at, record));
        moved(text, own.map_or(0, |own| own.moved), most)?;
        text.push('}');
    }
    text.push_str("],\n");
    let all = lines.moved();
    moved(text, all.len(), all.into_iter().take(options.lines))?;
    text.push_str(",\n");
    blocks(text, profile, options.profile)?;
    text.push_str("}\n");
    Ok(())
}

/// The profile's first `most` blocks, and the rest as one.
fn blocks(text: &mut String, profile: &Profile, most: usize) -> fmt::Result {
    let numbers = |text: &mut String, block: &Block| {
        let Block { instructions, operations, periodic, .. } = block;
        write!(
            text,
            "\"instructions\":{instructions},\"in_operations\":{operations},\"periodic\":{periodic}}}"
        )
    };
    let (top, others, rest) = profile.top(most);
    text.push_str("\"profile\":[");
    for (i, block) in top.iter().enumerate() {
        write!(text, "{}{{\"pc\":\"{:#x}\",", if i == 0 { "\n" } else { ",\n" }, block.pc)?;
        numbers(text, block)?;
    }
    write!(text, "],\n\"profile_other\":{{\"blocks\":{others},")?;
    numbers(text, &rest)
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
        ("periods", counts.periods),
        ("targets", counts.targets),
        ("faults", counts.faults),
        ("faults_new", counts.faults_new),
        ("faults_fill", counts.faults_fill),
        ("faults_repair", counts.faults_repair),
        ("faults_copy", counts.faults_copy),
        ("epochs", counts.epochs),
        ("grace_periods", counts.grace_periods),
    ];
    for (i, (name, n)) in named.into_iter().enumerate() {
        write!(text, "{}\"{name}\":{n}", if i == 0 { '{' } else { ',' })?;
    }
    text.push('}');
    Ok(())
}

/// Those of `count` lines that moved most.
fn moved<'a>(text: &mut String, count: usize, most: impl Iterator<Item = (u64, &'a Record)>) -> fmt::Result {
    write!(text, "\"lines_moved\":{count},\"lines\":[")?;
    for (i, (at, record)) in most.enumerate() {
        let Record { transfers, operations, periodic, cpus, touches, by_others, .. } = record;
        text.push_str(if i == 0 { "\n" } else { ",\n" });
        write!(text, "{{\"line\":\"{at:#x}\",\"transfers\":{transfers},\"in_operations\":{operations}")?;
        write!(text, ",\"periodic\":{periodic},\"cpus\":\"{}\"", ranges(cpus))?;
        for (name, address) in
            [("user_address", record.user_address), ("kernel_address", record.kernel_address)]
        {
            if address != 0 {
                write!(text, ",\"{name}\":\"{address:#x}\"")?;
            }
        }
        write!(text, ",\"by_others\":{by_others},\"touched_by\":[")?;
        for (i, touch) in touches.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let access = match touch.access {
                Access::Read => "read",
                Access::Write => "write",
                Access::Update => "update",
            };
            write!(text, "{comma}{{\"pc\":\"{:#x}\",\"access\":\"{access}\"", touch.pc)?;
            if touch.address != 0 {
                write!(text, ",\"address\":\"{:#x}\"", touch.address)?;
            }
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
        let (mut lines, mut profile) = (Lines::new(16), Profile::new());
        lines.begin_window();
        ledger.mark(1, Marker::WindowBegin);
        ledger.mark(1, Marker::OperationBegin);
        ledger.executed(1, [3, 4, 0], 2);
        lines.access(0x1000, By { cpu: 0, pc: 0x10, access: Access::Write });
        let by = By { cpu: 1, pc: 0x20, access: Access::Read };
        let moved = lines.access(0x1000, by).unwrap();
        assert_eq!(ledger.transfer(1, Mode::User), Some(Account::Operation));
        lines.record(0x1000, by, moved, Account::Operation, 0x7008);
        lines.end_window();
        let block = profile.number(0x1c);
        profile.enter(block);
        profile.count(7, Account::Operation);
        ledger.mark(1, Marker::OperationEnd);
        let options = Options::parse(["quantum=50"].into_iter()).unwrap();
        let zero = "{\"instructions_user\":0,\"instructions_kernel\":0,\"clearing\":0,\"periodic_instructions\":0,\
                    \"accesses\":0,\"transfers\":0,\"user_transfers\":0,\"clearing_transfers\":0,\"periodic_transfers\":0,\"ipis\":0,\"periodic_ipis\":0,\"periods\":0,\"targets\":0,\"faults\":0,\
                    \"faults_new\":0,\"faults_fill\":0,\"faults_repair\":0,\"faults_copy\":0,\"epochs\":0,\"grace_periods\":0}";
        let some = zero
            .replace("instructions_user\":0", "instructions_user\":3")
            .replace("kernel\":0", "kernel\":4")
            .replace("accesses\":0", "accesses\":2")
            .replace("\"transfers\":0", "\"transfers\":1")
            .replace("user_transfers\":0", "user_transfers\":1");
        let moved = "\"lines_moved\":1,\"lines\":[\n\
             {\"line\":\"0x1000\",\"transfers\":1,\"in_operations\":1,\"periodic\":0,\"cpus\":\"0-1\",\
             \"user_address\":\"0x7008\",\"by_others\":0,\"touched_by\":[\
             {\"pc\":\"0x10\",\"access\":\"write\",\"transfers\":0,\"cpus\":\"0\"},\
             {\"pc\":\"0x20\",\"access\":\"read\",\"address\":\"0x7008\",\"transfers\":1,\"cpus\":\"1\"}]}]";
        let expected = format!(
            "{{\"version\":1,\"q\":50,\"q_outside\":5000,\"seed\":1,\"cpus\":2,\"window\":\"marked\",\
             \"complete\":true,\"stray_markers\":0,\n\
             \"totals\":{{\"operations\":1,\"in_windows\":{some},\"in_operations\":{some}}},\n\
             \"per_cpu\":[\n{{\"operations\":0,\"in_windows\":{zero},\"in_operations\":{zero}}},\n\
             {{\"operations\":1,\"in_windows\":{some},\"in_operations\":{some}}}],\n\
             \"windows\":[\n{{\"cpus\":[\n\
             {{\"cpu\":1,\"opened\":1,\"operations\":1,\"in_window\":{some},\"in_operations\":{some},\
             \"each\":[[3,4,0,1,0]]}}],{moved}}}],\n{moved},\n\
             \"profile\":[\n\
             {{\"pc\":\"0x1c\",\"instructions\":7,\"in_operations\":7,\"periodic\":0}}],\n\
             \"profile_other\":{{\"blocks\":0,\"instructions\":0,\"in_operations\":0,\"periodic\":0}}}}\n"
        );
        let seen = Seen { ledger: &ledger, lines: &lines, profile: &profile };
        assert_eq!(json(&options, 2, true, &seen), expected);
    }
}
