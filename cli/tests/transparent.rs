//! The driver as a program, with a script in the emulator's place: what goes through, what every ending looks like,
//! and that each mistake is one line.

use std::{
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

/// Finds its channels in its arguments as QEMU does, then runs `BODY`: `out`, `err` and `control` write to them.
const EMULATOR: &str = r#"#!/bin/bash
for word in "$@"; do
    case $word in
        file,id=out,path=*) out=${word#*path=} ;;
        file,id=err,path=*) err=${word#*path=} ;;
        file,id=control,path=*) control=${word#*path=} ;;
        cpus=*) boot=$word ;;
    esac
done
arguments="$*"
out() { printf "$@" > "$out"; }
err() { printf "$@" > "$err"; }
control() { printf "$@" > "$control"; }
ready() { control '\x1eready 1000\n'; }
BODY
"#;

struct Driver {
    folder: tempfile::TempDir,
}

impl Driver {
    /// A driver whose emulator is this script.
    fn new(body: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("emulator");
        std::fs::write(&script, EMULATOR.replace("BODY", body)).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { folder }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quire"));
        command.args(arguments).stdin(Stdio::null());
        command.env("QUIRE_QEMU", self.folder.path().join("emulator"));
        // Its symbols serve for the kernel's.
        command.env("QUIRE_KERNEL", env!("CARGO_BIN_EXE_quire"));
        command
    }

    /// To run the program on a Linux that is there already, as is its first process.
    fn command_on_linux(&self) -> Command {
        let target = self.folder.path().join("target");
        for file in ["quire/linux/newest/vmlinuz-6.99", "guest/musl/init"] {
            std::fs::create_dir_all(target.join(file).parent().unwrap()).unwrap();
            std::fs::write(target.join(file), "").unwrap();
        }
        let mut command = self.command(&["run", "--kernel", "linux", &self.program()]);
        command.env("CARGO_TARGET_DIR", target);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// A static ELF program, as far as the driver looks.
    fn program(&self) -> String {
        let path = self.folder.path().join("program");
        let mut bytes = vec![0; 120];
        bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        (bytes[16], bytes[18], bytes[20], bytes[32], bytes[52], bytes[54], bytes[56]) =
            (2, 62, 1, 64, 64, 56, 1);
        bytes[64] = 1;
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn outputs_and_status_are_the_programs() {
    let driver = Driver::new(
        r"ready; out 'to out\0\xff\n'; err 'to err\n'; control 'kernel message\n\x1eexit 42\n'; exit 1",
    );
    let output = driver.run(&["run", &driver.program(), "--verbose"]);
    assert_eq!(output.stdout, b"to out\0\xff\n");
    assert_eq!(text(&output.stderr), "to err\n");
    assert_eq!(output.status.code(), Some(42));
}

#[test]
fn outputs_to_one_file_keep_their_order() {
    let driver =
        Driver::new("ready; for i in 1 2 3 4 5; do out $i; err e; done; control '\\x1eexit 0\\n'; exit 1");
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut command = driver.command(&["run", &driver.program()]);
    command.stdout(writer.try_clone().unwrap()).stderr(writer);
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut all = String::new();
    std::io::Read::read_to_string(&mut reader, &mut all).unwrap();
    assert_eq!(all, "1e2e3e4e5e");
    assert!(child.wait().unwrap().success());
}

#[test]
fn input_is_framed_once_the_guest_is_ready() {
    let driver = Driver::new("ready; head -c 9 | od -An -tx1 > \"$out\"; control '\\x1eexit 0\\n'; exit 1");
    let mut child = driver
        .command(&["run", &driver.program()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"hello").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output.stdout), " 05 00 68 65 6c 6c 6f 00 00\n");
}

#[test]
fn the_machine_is_told_what_was_asked_for() {
    let driver =
        Driver::new("ready; out '%s\\n%s\\n' \"$boot\" \"$arguments\"; control '\\x1eexit 0\\n'; exit 1");
    let options = ["run", "--cpus", "3", "--mem", "1G", "--numa", "2", "--accel", "tcg", "--stats"];
    let output = driver.run(&[&options[..], &[driver.program().as_str()]].concat());
    let stdout = text(&output.stdout);
    assert_eq!(stdout.lines().next(), Some("cpus=3 aspace=radix tty=none stats=1"));
    for words in ["-smp 3,", "-m 1024M", "-numa node,nodeid=1,cpus=1-2", "-machine q35 ", "-accel tcg,"] {
        assert!(stdout.contains(words), "{words}: {stdout}");
    }
}

#[test]
fn linux_gets_the_same_machine() {
    let driver = Driver::new("ready; out '%s\\n' \"$arguments\"; control '\\x1eexit 7\\n'; exit 1");
    let output = driver.command_on_linux().output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    let stdout = text(&output.stdout);
    for words in ["-machine q35 ", " mitigations=off ", " quiet -- tty=none -kernel ", "/vmlinuz-6.99 "] {
        assert!(stdout.contains(words), "{words}: {stdout}");
    }
}

#[test]
fn linux_gets_a_frame_of_input_when_it_asks_for_one() {
    let driver = Driver::new(
        "ready; head -c 4098 > /dev/null; read -t 0.5 -n 1 && out early; control '\\x1emore\\n'; \
         head -c 906 > /dev/null; read -t 0.5 -n 1 && out early; control '\\x1emore\\n'; \
         head -c 2 | od -An -tx1 > \"$out\"; control '\\x1eexit 0\\n'; exit 1",
    );
    let mut command = driver.command_on_linux();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&[b'x'; 5000]).unwrap();
    assert_eq!(text(&child.wait_with_output().unwrap().stdout), " 00 00\n");
}

#[test]
fn a_panic_of_linux_is_seen_on_the_serial_line() {
    let driver =
        Driver::new("ready; printf '[ 1.0] Kernel panic - not syncing: why\\r\\n  at 0x1\\r\\n'; exit 0");
    let output = driver.command_on_linux().output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let said = "[ 1.0] Kernel panic - not syncing: why\n  at 0x1\nquire: the kernel panicked: ";
    assert!(text(&output.stderr).starts_with(said), "{}", text(&output.stderr));
}

#[test]
fn stats_are_on_standard_error() {
    let json = r#"{"cpus":1,"counters":{"mmaps":[7]},"unknown_syscalls":{},"frames":{"total":1}}"#;
    let driver =
        Driver::new(&format!("ready; control '\\x1estats %s\\n' '{json}'; control '\\x1eexit 0\\n'; exit 1"));
    let output = driver.run(&["run", "--stats=json", &driver.program()]);
    assert_eq!((text(&output.stdout).as_str(), text(&output.stderr).trim_end()), ("", json));
    let output = driver.run(&["run", "--stats", &driver.program()]);
    assert!(text(&output.stderr).lines().any(|line| line.split_whitespace().eq(["mmaps", "7", "7"])));
}

#[test]
fn a_timeout_is_124_and_kills_the_machine() {
    let driver = Driver::new("ready; out before; sleep 1000");
    let began = Instant::now();
    let output = driver.run(&["run", "--timeout", "0.5", &driver.program()]);
    assert!(began.elapsed() < Duration::from_secs(60));
    assert_eq!(output.status.code(), Some(124));
    assert_eq!(text(&output.stdout), "before");
    assert_eq!(text(&output.stderr), "quire: timed out after 0.5 s\n");
}

#[test]
fn a_panic_is_125_and_shows_the_kernels_messages() {
    let driver = Driver::new("ready; control '\\x1epanic\\nassertion failed\\n  at 0x1\\n'; exit 97");
    let output = driver.run(&["run", &driver.program()]);
    assert_eq!(output.status.code(), Some(125));
    let stderr = text(&output.stderr);
    assert!(stderr.starts_with("assertion failed\n  at 0x0000000000000001 "), "{stderr}");
    assert!(stderr.ends_with("quire: the kernel panicked: the messages above say where\n"), "{stderr}");
}

#[test]
fn an_emulator_that_fails_says_why() {
    let driver = Driver::new("echo 'qemu: no such machine' >&2; exit 1");
    let output = driver.run(&["run", &driver.program()]);
    assert_eq!(output.status.code(), Some(125));
    let wanted = "quire: the emulator ended without a result (exit status: 1): qemu: no such machine\n";
    assert_eq!(text(&output.stderr), wanted);
    let output = Driver::new("echo \"cannot set up guest memory 'pc.ram'\" >&2; exit 1")
        .run(&["run", &driver.program()]);
    assert_eq!(text(&output.stderr), "quire: the host has not so much memory: say a smaller --mem\n");
    let output = Driver::new("exit 0").run(&["run", &driver.program()]);
    assert_eq!(text(&output.stderr), "quire: the machine reset itself (a triple fault)\n");
}

#[test]
fn kernel_messages_need_verbose() {
    let driver = Driver::new("control 'cpu 0 is up\\n'; ready; control '\\x1eexit 0\\n'; exit 1");
    assert_eq!(text(&driver.run(&["run", &driver.program()]).stderr), "");
    let stderr = text(&driver.run(&["run", "--verbose", &driver.program()]).stderr);
    assert!(stderr.contains("cpu 0 is up\n"), "{stderr}");
}

#[test]
fn a_signal_to_the_driver_ends_the_machine_too() {
    let driver = Driver::new("echo $$ > ${0%/*}/pid; ready; sleep 1000");
    let mut child = driver.command(&["run", &driver.program()]).spawn().unwrap();
    let pid_file = driver.folder.path().join("pid");
    let pid = wait_for(|| std::fs::read_to_string(&pid_file).ok().filter(|text| text.ends_with('\n')));
    let signal = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(signal.success());
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(15));
    let process = format!("/proc/{}", pid.trim());
    wait_for(|| (!Path::new(&process).exists()).then_some(()));
}

fn wait_for<T>(mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn mistakes_are_one_line_with_a_status() {
    let driver = Driver::new("exit 1");
    let program = driver.program();
    let plain = driver.folder.path().join("plain");
    std::fs::write(&plain, "text").unwrap();
    let plain = plain.to_str().unwrap();
    let cases: &[(&[&str], i32, &str)] = &[
        (&[], 2, "say what to do: cargo quire run, trace, test or doctor"),
        (&["frob"], 2, "see cargo quire --help"),
        (&["run", "--frob", &program], 2, "unexpected argument '--frob'"),
        (&["run", "--cpus", "0", &program], 2, "from 1 to 255"),
        (&["run", "--cpus", "256", &program], 2, "from 1 to 255"),
        (&["run", "--mem", "2", &program], 2, "as in 512M or 2G"),
        (&["run", "--numa", "4", "--cpus", "2", &program], 2, "say --cpus 4 or more"),
        (&["run", "--aspace", "btree", &program], 2, "there is bonsai, locked, radix"),
        (&["run", "--bind", "/no/such", &program], 2, "no such file or directory on the host"),
        (&["run", "--root", "/no/such", &program], 125, "cannot pack /no/such"),
        (&["run", "no-such-program"], 127, "no such program on PATH"),
        (&["run", "./no-such-program"], 127, "no such file"),
        (&["run", "/"], 126, "is a directory"),
        (&["run", plain], 126, "is not executable: chmod +x"),
        (&["run", "/bin/sh"], 126, "is dynamically linked"),
        (&["run", "--kernel", "hurd", &program], 2, "there is quire, linux"),
        (&["run", "--kernel", "linux", "--linux", "5.4", &program], 2, "there is 6.1, newest"),
        (&["run", "--linux", "6.1", &program], 2, "add --kernel linux"),
        (&["run", "--kernel", "linux", "--mem", "64M", &program], 2, "say --mem 96M or more"),
        (
            &["test", "frob"],
            2,
            "host, loom, spin, kernel, linux, peer, trace, mutants, sanitize, stress, apps, all",
        ),
    ];
    for (arguments, status, words) in cases {
        let output = driver.run(arguments);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(*status), "{arguments:?}: {stderr}");
        assert!(stderr.starts_with("quire: ") && stderr.contains(words), "{arguments:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{arguments:?}: {stderr}");
    }
}

#[test]
fn without_an_emulator_the_line_says_what_to_install() {
    let driver = Driver::new("");
    let mut command = driver.command(&["run", &driver.program()]);
    // Without apt-get on PATH nothing can be installed here, whoever runs the test.
    let output = command.env_remove("QUIRE_QEMU").env("PATH", driver.folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let wanted = "quire: qemu-system-x86_64 missing: install what Debian calls qemu-system-x86\n";
    assert_eq!(text(&output.stderr), wanted);
}
