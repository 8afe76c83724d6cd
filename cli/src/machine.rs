//! The machine: how QEMU is told to build it.
//!
//! A q35 board with as many processors as asked for, the kernel booted directly, and five channels to the driver:
//! standard output, standard error and the control channel by a debug console each (a port that takes one byte a write
//! and needs no driver), input by the first serial line, and a port that ends the machine. Linux gets the same machine,
//! so that what is measured on both differs by the kernel alone; its own messages come out of the serial line.

use std::{
    ffi::OsString,
    fmt::Write,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::{Result, bail};

use crate::{
    args::{Accel, Aspace, Exclude, FrameAlgo, Locked, PageTables},
    exact::Exact,
    failure::{USAGE, failure},
    linux,
    needs::{self, Tool},
    numa::Numa,
    workspace,
};

/// Names the emulator instead of `qemu-system-x86_64`.
pub const EMULATOR: &str = "QUIRE_QEMU";

/// QEMU's exit status after the kernel ended the machine as it should: 2 * 0 + 1.
pub const STATUS_DONE: i32 = 1;
/// QEMU's exit status after a kernel panic: 2 * 0x30 + 1.
pub const STATUS_PANIC: i32 = 97;

/// Kernels that a machine can boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// This workspace's.
    Quire,
    /// Linux, with a first process of ours.
    Linux,
}

/// A machine to be started.
#[derive(Clone)]
pub struct Machine {
    /// The kernel's file: Quire's ELF file, or Linux's compressed image.
    pub kernel: PathBuf,
    /// What it is.
    pub system: System,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// NUMA nodes.
    pub numa: Numa,
    /// KVM rather than TCG.
    pub kvm: bool,
    /// TCG runs all CPUs in one host thread.
    pub one_host_thread: bool,
    /// The same way each time.
    pub exact: Option<Exact>,
}

impl Machine {
    /// A machine with this many CPUs, all else as by default, on TCG.
    pub fn new(kernel: PathBuf, cpus: u32) -> Self {
        Self {
            kernel,
            system: System::Quire,
            cpus,
            memory: default_memory(cpus),
            numa: Numa::even(1),
            kvm: false,
            one_host_thread: one_host_thread(cpus),
            exact: None,
        }
    }

    /// The same machine with its CPUs scheduled in the other way, which shows other interleavings.
    pub fn scheduled_otherwise(&self) -> Self {
        Self { one_host_thread: !self.one_host_thread, ..self.clone() }
    }

    /// Threads of the host that its CPUs keep busy when all of them run.
    pub fn host_threads(&self) -> usize {
        if self.is_single() { 1 } else { self.cpus as usize }
    }

    /// Whether TCG runs all CPUs in one host thread.
    fn is_single(&self) -> bool {
        self.one_host_thread || self.exact.is_some()
    }

    /// The kernel's command line. `shared`: the program's standard output and error are one file.
    pub fn command_line(&self, boot: &Boot, shared: bool) -> String {
        match self.system {
            System::Quire => boot.line(self.cpus),
            System::Linux => linux::command_line(boot, shared, self.exact.is_some()),
        }
    }

    /// The machine's accelerator with its options.
    fn accelerator(&self) -> &'static str {
        if self.kvm {
            "kvm"
        } else if self.is_single() {
            "tcg,thread=single"
        } else {
            "tcg,thread=multi"
        }
    }

    /// QEMU's arguments. `initramfs` and the three channels are paths that QEMU opens, and `report` one that the exact
    /// machine's tracer does; `boot` is the kernel's command line.
    pub fn arguments(
        &self,
        initramfs: &Path,
        channels: &[PathBuf; 3],
        report: Option<&Path>,
        boot: &str,
    ) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
        let mib = self.memory.div_ceil(1 << 20);
        add(&["-accel", self.accelerator()]);
        match &self.exact {
            None => add(&["-machine", "q35", "-cpu", "max"]),
            Some(exact) => exact.arguments(report).iter().for_each(|word| add(&[word.as_str()])),
        }
        add(&["-smp", &format!("{0},sockets=1,cores={0},threads=1", self.cpus), "-m", &format!("{mib}M")]);
        for (option, value) in self.numa.arguments(self.cpus, mib) {
            add(&[option, &value]);
        }
        add(&["-display", "none", "-no-reboot", "-nodefaults"]);
        // Input that comes when it likes has no place on the exact machine; there it's packed with the files. Linux's
        // messages still come out.
        let input =
            if self.exact.is_some() { "file,id=in,path=/dev/stdout" } else { "stdio,id=in,signal=off" };
        add(&["-chardev", input, "-serial", "chardev:in"]);
        for ((port, name), path) in
            [("0xe9", "out"), ("0xea", "err"), ("0xeb", "control")].iter().zip(channels)
        {
            add(&["-chardev", &format!("file,id={name},path={}", path.display())]);
            add(&["-device", &format!("isa-debugcon,iobase={port},chardev={name}")]);
        }
        add(&["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-append", boot]);
        arguments.extend(["-kernel".into(), self.kernel.clone().into(), "-initrd".into(), initramfs.into()]);
        arguments
    }
}

/// 256 MiB and 64 MiB a CPU.
pub fn default_memory(cpus: u32) -> u64 {
    (256 + 64 * u64::from(cpus)) << 20
}

/// CPUs of the host that this process may use.
pub fn host_cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u32)
}

/// Whether QEMU should run all virtual CPUs in one host thread. With a thread each, a CPU that waits for others to answer
/// waits for the host's scheduler to run each of them: with twice as many CPUs as the host has, threads that map and
/// unmap were measured to run 8 times faster in one thread, and threads that only compute as fast or up to twice slower.
pub fn one_host_thread(cpus: u32) -> bool {
    cpus >= 2 * host_cpus()
}

/// The emulator's path.
pub fn emulator() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(EMULATOR) {
        return match workspace::is_executable(Path::new(&path)) {
            true => Ok(path.into()),
            false => bail!("{EMULATOR} names {}, which cannot be executed", PathBuf::from(path).display()),
        };
    }
    needs::ensure(&[Tool::Qemu])?;
    match workspace::which(Tool::Qemu.program()) {
        Some(path) => Ok(path),
        None => bail!("no {}: {}", Tool::Qemu.program(), needs::command(Tool::Qemu.packages())),
    }
}

/// Whether to use KVM, and why, for people. A `/dev/kvm` without hardware behind it emulates instructions, hundreds of
/// times slower than TCG: it counts only with the module of a processor's virtualisation.
pub fn choose_kvm(wanted: Accel) -> Result<(bool, String)> {
    let why_not = why_no_kvm(Path::new("/sys/module"), Path::new("/dev/kvm"));
    match (wanted, why_not) {
        (Accel::Exact, _) => Ok((false, "exact: TCG by the instruction".to_owned())),
        (Accel::Tcg, _) => Ok((false, "TCG, as asked".to_owned())),
        (Accel::Auto, Some(why)) => Ok((false, format!("TCG: {why}"))),
        (Accel::Auto, None) => Ok((true, "KVM".to_owned())),
        (Accel::Kvm, None) => Ok((true, "KVM, as asked".to_owned())),
        (Accel::Kvm, Some(why)) => {
            Err(failure(USAGE, format!("no KVM here ({why}): use --accel auto or tcg")))
        }
    }
}

fn why_no_kvm(modules: &Path, device: &Path) -> Option<String> {
    if !["kvm_intel", "kvm_amd"].iter().any(|name| modules.join(name).exists()) {
        return Some("neither kvm_intel nor kvm_amd is loaded".to_owned());
    }
    let writable = rustix::fs::access(device, rustix::fs::Access::WRITE_OK).is_ok();
    (!writable).then(|| format!("{} is not writable", device.display()))
}

/// What the kernel is told at boot.
#[derive(Clone, Default)]
pub struct Boot {
    /// The design of Quire's address space.
    pub aspace: Option<Aspace>,
    /// How many page tables radix address spaces have, if not as by default.
    pub pagetable: Option<PageTables>,
    /// What page faults of Bonsai address spaces wait for, if not as by default.
    pub exclude: Option<Exclude>,
    /// What `locked` address spaces are like, if not as by default.
    pub locked: Locked,
    /// Quire's algorithm for page frames, if not its default.
    pub frames: Option<FrameAlgo>,
    /// Send the counters at the end.
    pub stats: bool,
    /// Which of the file descriptors 0, 1 and 2 are terminals.
    pub terminals: Vec<u8>,
    /// The terminal's rows and columns.
    pub size: Option<(u16, u16)>,
    /// Run these tests of Quire's instead of a program.
    pub selftest: Option<String>,
    /// Print Linux's symbols instead of running a program.
    pub kallsyms: bool,
    /// Say more.
    pub verbose: bool,
    /// The CPUs take turns, and time is the sum of what they execute.
    pub serial_time: bool,
    /// Send names for memory at the end.
    pub places: bool,
    /// Share a counter of page faults among all CPUs.
    pub plant_shared_counter: bool,
    /// Further words, as they are.
    pub words: Vec<String>,
}

/// The design, and its page tables, of machines of which nothing else is said.
static DESIGN: Mutex<(Aspace, Option<PageTables>)> = Mutex::new((Aspace::Radix, None));

/// Let machines have this design from here on, if nothing else is said.
pub fn set_design(design: Aspace, tables: Option<PageTables>) {
    *DESIGN.lock().unwrap_or_else(PoisonError::into_inner) = (design, tables);
}

/// What was set, or the default.
pub fn design() -> (Aspace, Option<PageTables>) {
    *DESIGN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Boot {
    /// As `key=value` words for Quire.
    pub fn line(&self, cpus: u32) -> String {
        let (design, tables) = match self.aspace {
            Some(aspace) => (aspace, self.pagetable),
            None => (design().0, self.pagetable.or(design().1)),
        };
        let mut line = format!("cpus={cpus} aspace={}", design.name());
        if let Some(tables) = tables {
            // Writing to a String cannot fail, here and below.
            let _ = write!(line, " pagetable={}", tables.name());
        }
        if let Some(exclude) = self.exclude {
            let _ = write!(line, " exclude={}", exclude.name());
        }
        for (name, value) in self.locked.said() {
            let _ = write!(line, " {name}={value}");
        }
        if let Some(algo) = self.frames {
            let _ = write!(line, " frames={}", algo.name());
        }
        line += &self.files();
        if let Some(name) = &self.selftest {
            let _ = write!(line, " selftest={name}");
        }
        if self.serial_time {
            line += " serial_time=1";
        }
        if self.places {
            line += " places=1";
        }
        if self.plant_shared_counter {
            line += " plant=shared-counter";
        }
        if self.verbose {
            line += " verbose=1";
        }
        for word in &self.words {
            line += " ";
            line += word;
        }
        line
    }

    /// What both kernels are told of the standard files and the counters, with a space before each word.
    pub fn files(&self) -> String {
        let terminals: Vec<_> = self.terminals.iter().map(u8::to_string).collect();
        let terminals = if terminals.is_empty() { "none".to_owned() } else { terminals.join(",") };
        let mut words = format!(" tty={terminals}");
        if let Some((rows, columns)) = self.size {
            let _ = write!(words, " rows={rows} cols={columns}");
        }
        if self.stats {
            words += " stats=1";
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::design::{Flush, Wait};

    #[test]
    fn the_boot_line_has_what_was_set() {
        assert_eq!(Boot::default().line(2), "cpus=2 aspace=radix tty=none");
        let boot = Boot {
            aspace: Some(Aspace::Locked),
            pagetable: Some(PageTables::Shared),
            exclude: Some(Exclude::FaultLock),
            locked: Locked { rwlock: Some(Wait::Spin), flush: Some(Flush::Space), ..Locked::default() },
            frames: Some(FrameAlgo::Avl),
            stats: true,
            terminals: vec![0, 2],
            size: Some((24, 80)),
            selftest: Some("all".into()),
            kallsyms: false,
            verbose: true,
            serial_time: true,
            places: true,
            plant_shared_counter: true,
            words: vec!["inject".into()],
        };
        assert_eq!(
            boot.line(8),
            "cpus=8 aspace=locked pagetable=shared exclude=fault-lock rwlock=spin flush=space frames=avl tty=0,2 rows=24 cols=80 stats=1 selftest=all \
             serial_time=1 places=1 plant=shared-counter verbose=1 inject"
        );
    }

    #[test]
    fn kvm_needs_hardware_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("kvm");
        assert!(why_no_kvm(dir.path(), &device).unwrap().contains("kvm_intel"));
        std::fs::create_dir(dir.path().join("kvm_amd")).unwrap();
        assert!(why_no_kvm(dir.path(), &device).unwrap().ends_with("not writable"));
        std::fs::write(&device, "").unwrap();
        assert_eq!(why_no_kvm(dir.path(), &device), None);
    }
}
