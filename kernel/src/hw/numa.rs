//! Which memory and which CPUs are near each other, as the firmware says in SRAT and SLIT; what that means is in
//! [`frames::topology`]. Read before there is a heap, so the result lives in a static.
//!
//! The tables' bytes are data of the firmware's: every length is checked before it is believed, and a table that does not
//! hold together is left out as a whole, with a line in the log.

use core::{cell::UnsafeCell, fmt};

use acpi::{
    AcpiTable, AcpiTables, PhysicalMapping,
    sdt::{SdtHeader, Signature},
};
use addr::PhysAddr;
use frames::{
    FrameRange, MAX_NODES, Node, NodeSet, Topology,
    topology::{Builder, CpuAffinity, MemoryAffinity, TopologyError},
};
use percpu::CpuId;

use super::{
    acpi::{Direct, Machine},
    boot::{Info, PhysRange},
};
use crate::log;

/// What is known of nodes.
struct Numa {
    topology: Topology,
    /// Of each node, how many frames of RAM the loader listed, the kernel's own among them.
    frames: [u64; MAX_NODES],
    /// What SRAT says, while it is read: it is large for a stack.
    records: Builder,
}

struct Cell(UnsafeCell<Numa>);
// SAFETY: written by `init`, on the boot CPU before others run.
unsafe impl Sync for Cell {}
static NUMA: Cell = Cell(UnsafeCell::new(Numa {
    topology: Topology::one_node(1),
    frames: [0; MAX_NODES],
    records: Builder::new(1),
}));

fn numa() -> &'static Numa {
    // SAFETY: nobody writes after `init`, which runs before anybody calls this.
    unsafe { &*NUMA.0.get() }
}

/// The machine's nodes.
pub fn topology() -> &'static Topology {
    &numa().topology
}

/// How many frames of RAM `node` has, the kernel's own among them.
pub fn frames_of(node: Node) -> u64 {
    numa().frames.get(node.index()).copied().unwrap_or(0)
}

/// The nodes that have memory.
pub fn with_memory() -> NodeSet {
    topology().all().iter().filter(|&node| frames_of(node) > 0).collect()
}

/// A table of which only the header has a type.
#[repr(transparent)]
struct Srat(SdtHeader);
// SAFETY: every table begins with such a header.
unsafe impl AcpiTable for Srat {
    const SIGNATURE: Signature = Signature::SRAT;
    fn header(&self) -> &SdtHeader {
        &self.0
    }
}

/// Likewise.
#[repr(transparent)]
struct Slit(SdtHeader);
// SAFETY: every table begins with such a header.
unsafe impl AcpiTable for Slit {
    const SIGNATURE: Signature = Signature::SLIT;
    fn header(&self) -> &SdtHeader {
        &self.0
    }
}

/// The bytes of a table, its header among them.
fn bytes<T: AcpiTable>(table: &PhysicalMapping<Direct, T>) -> &[u8] {
    let start = table.virtual_start().cast::<u8>();
    // SAFETY: mapped for this length, for ever, and nobody writes to the firmware's tables.
    unsafe { core::slice::from_raw_parts(start.as_ptr(), table.region_length()) }
}

/// Read the tables, of which there may be none (`tables`); the CPUs of `machine` are known, and the loader's map.
pub(super) fn init(tables: Option<&AcpiTables<Direct>>, machine: &Machine, info: &Info) {
    // SAFETY: the boot CPU, once; see `Cell`.
    let numa = unsafe { &mut *NUMA.0.get() };
    let ids = machine.apic_ids();
    numa.topology.reset(ids.len());
    if let Some(srat) = tables.and_then(|tables| tables.find_table::<Srat>().ok())
        && let Err(why) = read_srat(bytes(&srat), ids, info.ram(), &mut numa.records, &mut numa.topology)
    {
        log!("SRAT is left out: {why}");
    }
    if let Some(slit) = tables.and_then(|tables| tables.find_table::<Slit>().ok())
        && let Err(why) = read_slit(bytes(&slit), &mut numa.topology)
    {
        log!("SLIT is left out: {why}");
    }
    for ram in info.ram() {
        let [start, end] = [ram.start, ram.end].map(|at| PhysAddr::new(at).map(PhysAddr::frame));
        let (Some(start), Some(end)) = (start, end) else { continue };
        for (node, part) in numa.topology.cut(FrameRange { start, end }) {
            if let Some(count) = numa.frames.get_mut(node.index()) {
                *count += part.end.number() - part.start.number();
            }
        }
    }
}

/// Why a table is left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Malformed {
    /// It ends within something.
    Short,
    /// An entry is shorter than its kind.
    Entry(u8),
    /// It can't be true.
    Untrue(TopologyError),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => f.write_str("it is too short"),
            Self::Entry(kind) => write!(f, "an entry of type {kind} is too short"),
            Self::Untrue(error) => error.fmt(f),
        }
    }
}

impl From<TopologyError> for Malformed {
    fn from(error: TopologyError) -> Self {
        Self::Untrue(error)
    }
}

/// The `N` bytes from `at` on.
fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    field(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    field(bytes, at).map(u64::from_le_bytes)
}

/// Bytes of what every table begins with; its revision is in it.
const HEADER: usize = 36;
const REVISION: usize = 8;
/// Where SRAT's entries begin: 12 reserved bytes follow the header.
const ENTRIES: usize = HEADER + 12;

/// Make `topology` what the bytes of SRAT say, which begin with the header (ACPI 6.5, section 5.2.16), for CPUs with these
/// local APICs' numbers. Ranges in which there is no `ram` are left out: memory could be plugged in there. After an error
/// it is as it was, or has one node.
pub(super) fn read_srat(
    table: &[u8],
    apic_ids: &[u32],
    ram: &[PhysRange],
    builder: &mut Builder,
    topology: &mut Topology,
) -> Result<(), Malformed> {
    builder.reset(apic_ids.len());
    // Before revision 2 a domain's upper three bytes are reserved.
    let revision = *table.get(REVISION).ok_or(Malformed::Short)?;
    let domain_of = |domain: u32| if revision < 2 { domain & 0xff } else { domain };
    let cpu_of = |id: u32| apic_ids.iter().position(|known| *known == id).and_then(CpuId::new);
    let mut rest = table.get(ENTRIES..).ok_or(Malformed::Short)?;
    while let [kind, length, ..] = *rest {
        let (entry, next) = rest.split_at_checked(length.into()).ok_or(Malformed::Short)?;
        let too_short = Malformed::Entry(kind);
        if entry.len() < 2 {
            return Err(too_short);
        }
        let mut cpu = |id: u32, domain: u32, flags: u32| {
            if let Some(cpu) = cpu_of(id) {
                builder.cpu(CpuAffinity { cpu, domain: domain_of(domain), enabled: flags & 1 != 0 });
            }
        };
        match kind {
            // Processor local APIC: the domain's bytes are in two places.
            0 => {
                let [_, _, low, id, f0, f1, f2, f3, _, a, b, c] = field(entry, 0).ok_or(too_short)?;
                cpu(id.into(), u32::from_le_bytes([low, a, b, c]), u32::from_le_bytes([f0, f1, f2, f3]));
            }
            // Memory.
            1 => {
                let domain = u32_at(entry, 2).ok_or(too_short)?;
                let base = u64_at(entry, 8).ok_or(too_short)?;
                let length = u64_at(entry, 16).ok_or(too_short)?;
                let flags = u32_at(entry, 28).ok_or(too_short)?;
                let range = PhysRange { start: base, end: base.saturating_add(length) };
                let enabled = flags & 1 != 0 && ram.iter().any(|r| r.overlaps(range));
                builder.memory(MemoryAffinity { base, length, domain: domain_of(domain), enabled })?;
            }
            // Processor local x2APIC.
            2 => {
                let domain = u32_at(entry, 4).ok_or(too_short)?;
                let id = u32_at(entry, 8).ok_or(too_short)?;
                let flags = u32_at(entry, 12).ok_or(too_short)?;
                cpu(id, domain, flags);
            }
            // Devices, and what this machine has not.
            _ => {}
        }
        rest = next;
    }
    if rest.is_empty() { Ok(builder.build_in(topology)?) } else { Err(Malformed::Short) }
}

/// Take the distances from the bytes of SLIT, which begin with the header: the number of domains, and a byte for each
/// pair, row by row (ACPI 6.5, section 5.2.17).
pub(super) fn read_slit(table: &[u8], topology: &mut Topology) -> Result<(), Malformed> {
    let localities = u64_at(table, HEADER).ok_or(Malformed::Short)?;
    let matrix = table.get(HEADER + 8..).ok_or(Malformed::Short)?;
    let entries = localities.checked_mul(localities).ok_or(Malformed::Short)?;
    if (matrix.len() as u64) < entries {
        return Err(Malformed::Short);
    }
    let entry = |from: u32, to: u32| {
        let at = u64::from(from) * localities + u64::from(to);
        // It is there: both are below `localities`.
        usize::try_from(at).ok().and_then(|at| matrix.get(at)).copied().unwrap_or(0)
    };
    Ok(topology.set_distances(localities, entry)?)
}
