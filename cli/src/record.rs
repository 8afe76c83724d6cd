//! The control channel: what the kernel (on Linux, the first process) tells the driver.
//!
//! Lines. One that starts with the byte 0x1e (ASCII's record separator, which no message contains) is a record; every
//! other is a message for people. The protocol, and who writes each record:
//!
//! | record | when |
//! | --- | --- |
//! | `ready NS` | first user instruction, NS nanoseconds after the machine's start; from here on input may be sent |
//! | `more` | Linux only: the program took the last frame of input; another may be sent |
//! | `exit N` | the program ended: its exit status, or 128 + signal |
//! | `stats {…}` | the counters, before `exit`, if the command line said `stats=1` |
//! | `test NAME ok` or `test NAME FAIL why` | one of the kernel's own tests ended |
//! | `panic` | the kernel panicked; the messages that follow say why |

/// A line of the control channel.
#[derive(Debug, PartialEq)]
pub enum Line {
    /// The first user instruction, in nanoseconds since the machine's start.
    Ready(u64),
    /// The next frame of input may be sent.
    More,
    /// The program's exit status.
    Exit(u8),
    /// The counters, as JSON.
    Stats(String),
    /// A test of the kernel's: its name, and why it failed if it did.
    Test(String, Result<(), String>),
    /// The kernel panicked.
    Panic,
    /// A message of the kernel's.
    Message(String),
}

/// Introduces a record.
const MARK: char = '\x1e';

/// Understand one line, without its line feed. A malformed record is a message: it must be seen.
pub fn parse(line: &str) -> Line {
    record(line).unwrap_or_else(|| Line::Message(line.trim_start_matches(MARK).to_owned()))
}

fn record(line: &str) -> Option<Line> {
    let record = line.strip_prefix(MARK)?;
    let (kind, rest) = record.split_once(' ').unwrap_or((record, ""));
    Some(match kind {
        "ready" => Line::Ready(rest.parse().ok()?),
        "more" => Line::More,
        "exit" => Line::Exit(rest.parse().ok()?),
        "stats" => Line::Stats(rest.to_owned()),
        "panic" => Line::Panic,
        "test" => {
            // A name is a sentence, so the verdict is what separates.
            let (name, result) = match rest.strip_suffix(" ok") {
                Some(name) => (name, Ok(())),
                None => {
                    rest.split_once(" FAIL").map(|(name, why)| (name, Err(why.trim_start().to_owned())))?
                }
            };
            Line::Test(name.to_owned(), result)
        }
        _ => return None,
    })
}

/// The address in a backtrace line, `  at 0xADDRESS`.
pub fn backtrace_address(message: &str) -> Option<u64> {
    let text = message.strip_prefix("  at 0x")?.split_whitespace().next()?;
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_understood() {
        assert_eq!(parse("\x1eready 123456"), Line::Ready(123_456));
        assert_eq!(parse("\x1emore"), Line::More);
        assert_eq!(parse("\x1eexit 139"), Line::Exit(139));
        assert_eq!(parse("\x1estats {\"a\": 1}"), Line::Stats("{\"a\": 1}".into()));
        assert_eq!(parse("\x1etest pipes are full ok"), Line::Test("pipes are full".into(), Ok(())));
        assert_eq!(
            parse("\x1etest pipes FAIL 3 of 4 bytes"),
            Line::Test("pipes".into(), Err("3 of 4 bytes".into()))
        );
        assert_eq!(parse("\x1etest a b FAIL"), Line::Test("a b".into(), Err(String::new())));
        assert_eq!(parse("\x1epanic"), Line::Panic);
    }

    #[test]
    fn everything_else_is_a_message() {
        for line in ["", "exit 3", "cpu 1 is online", " \x1eexit 3"] {
            assert_eq!(parse(line), Line::Message(line.into()));
        }
        for bad in
            ["exit", "exit 256", "exit -1", "exit 1 2", "ready", "test", "test x", "test x maybe", "frob 1"]
        {
            assert_eq!(parse(&format!("\x1e{bad}")), Line::Message(bad.into()));
        }
    }

    #[test]
    fn backtrace_lines_carry_an_address() {
        assert_eq!(backtrace_address("  at 0xffffffff80101234"), Some(0xffff_ffff_8010_1234));
        assert_eq!(backtrace_address("  at 0x10 in boot"), Some(0x10));
        assert_eq!(backtrace_address("at 0x10"), None);
        assert_eq!(backtrace_address("  at 0xzz"), None);
    }
}
