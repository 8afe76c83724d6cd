//! What a process's memory looks like, in numbers: its mappings, and which of their pages are resident.
//!
//! Two formats are read, told apart by the first line; the first is written. Page numbers and offsets are in pages, hexadecimal.
//!
//! ```text
//! quire-shape 1                               # process shape: NAME. ...
//! about WORDS                                 map START END PERMS OBJECT OFFSET
//! linux VMA-BYTES TABLE-BYTES                 res START END
//! map START END PERMS KIND OBJECT OFFSET FLAGS
//! res START END
//! ```
//! `PERMS` is as in `/proc/PID/maps`. `KIND` is one of [`Kind::NAMES`]. `OBJECT` numbers the files and shared memories of one shape
//! from 1; 0 is none. `FLAGS` are those of `VmFlags` in `/proc/PID/smaps` that tell mappings apart ([`FLAGS`]), separated by commas,
//! or `-`. Mappings ascend and are disjoint, as do runs of resident pages, each of which lies within mappings.
//! No name of a file is kept. Lines that begin with `#` say nothing.

use std::fmt::Write;

/// Pages of user space.
pub const END: u64 = 1 << 35;
/// What the first line of a file begins with, and the version.
const MAGIC: &str = "quire-shape";
const VERSION: &str = "1";
/// What the first line of the published files begins with.
const PUBLISHED: &str = "# process shape:";
/// Flags of a mapping that are kept: grows down, locked, not for children, empty for children, no memory set aside, not in
/// dumps, sequential, random, large pages, no large pages, may be merged; and what protection may never be given.
pub const FLAGS: [&str; 14] =
    ["gd", "lo", "dc", "wf", "nr", "dd", "sr", "rr", "hg", "nh", "mg", "no-mr", "no-mw", "no-me"];

/// What kind of memory a mapping is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Memory of the process's own.
    Anon,
    /// A file, or memory that processes share.
    File,
    /// The heap of `brk`.
    Heap,
    /// The first stack.
    Stack,
    /// Code and data that the kernel gives every process.
    Kernel,
}

impl Kind {
    /// Each with its name.
    const NAMES: [(Kind, &str); 5] = [
        (Kind::Anon, "anon"),
        (Kind::File, "file"),
        (Kind::Heap, "heap"),
        (Kind::Stack, "stack"),
        (Kind::Kernel, "kernel"),
    ];
    fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }
}

/// A mapping.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Map {
    /// Its first page, and the one behind its last.
    pub start: u64,
    pub end: u64,
    /// Reading, writing, executing.
    pub rights: [bool; 3],
    pub shared: bool,
    pub kind: Kind,
    /// 0 for none.
    pub object: u32,
    /// The object's page that is the mapping's first.
    pub offset: u64,
    /// Of [`FLAGS`].
    pub flags: Vec<&'static str>,
}

/// A process.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Shape {
    /// What it is and where it is from.
    pub about: String,
    /// Bytes of a mapping and bytes of page tables, as the kernel had them where it was recorded.
    pub linux: Option<(u64, u64)>,
    pub maps: Vec<Map>,
    pub resident: Vec<(u64, u64)>,
}

impl Shape {
    /// How many pages are resident.
    pub fn pages(&self) -> u64 {
        self.resident.iter().map(|(start, end)| end - start).sum()
    }

    /// What a file says; or what is wrong with it, and in which line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let first = text.lines().next().unwrap_or("");
        let published = first.starts_with(PUBLISHED);
        let mut shape = Shape::default();
        if !published {
            match first.split_whitespace().collect::<Vec<_>>()[..] {
                [MAGIC, VERSION] => {}
                [MAGIC, version] => {
                    return Err(format!(
                        "line 1: version {version} of the format is not known, only {VERSION}"
                    ));
                }
                _ => return Err(format!("line 1: not a shape: it should be `{MAGIC} {VERSION}`")),
            }
        }
        for (number, line) in text.lines().enumerate().skip(1) {
            let words: Vec<_> = line.split_whitespace().collect();
            let read = match &words[..] {
                [] => Ok(()),
                [first, ..] if first.starts_with('#') => Ok(()),
                ["about", ..] if !published => {
                    shape.about = words[1..].join(" ");
                    Ok(())
                }
                ["linux", vma, tables] if !published => {
                    decimal(vma).and_then(|vma| Ok((vma, decimal(tables)?))).map(|said| {
                        shape.linux = Some(said);
                    })
                }
                ["map", rest @ ..] => shape.add(rest, published),
                ["res", start, end] => shape.add_resident(start, end),
                [other, ..] => Err(format!("{other:?} is nothing that a line says, or not so")),
            };
            read.map_err(|problem| format!("line {}: {problem}", number + 1))?;
        }
        if shape.maps.is_empty() {
            return Err("it has no mappings".to_owned());
        }
        shape.check_resident()?;
        Ok(shape)
    }

    fn add(&mut self, words: &[&str], published: bool) -> Result<(), String> {
        let (start, end, perms, kind, object, offset, flags) = match *words {
            [start, end, perms, object, offset] if published => {
                let kind = if object == "0" { "anon" } else { "file" };
                (start, end, perms, kind, object, offset, "-")
            }
            [start, end, perms, kind, object, offset, flags] if !published => {
                (start, end, perms, kind, object, offset, flags)
            }
            _ => return Err(format!("a mapping has {} words", if published { 6 } else { 8 })),
        };
        let (start, end) = self.run(start, end, self.maps.last().map_or(0, |last| last.end))?;
        let kind = Kind::NAMES.iter().find(|(_, name)| *name == kind);
        let &(kind, _) = kind.ok_or("a mapping is anon, file, heap, stack or kernel")?;
        let (rights, shared) = rights(perms)?;
        let object = object.parse().map_err(|_| format!("{object:?} is not an object's number"))?;
        if kind == Kind::File && object == 0 {
            return Err("a mapping of a file has an object".to_owned());
        }
        let flags = flags.split(',').filter(|flag| *flag != "-").map(|flag| {
            let known = FLAGS.iter().find(|known| **known == flag);
            known.copied().ok_or_else(|| format!("{flag:?} is not a flag of mappings"))
        });
        let (offset, flags) = (hexadecimal(offset)?, flags.collect::<Result<_, _>>()?);
        self.maps.push(Map { start, end, rights, shared, kind, object, offset, flags });
        Ok(())
    }
    fn add_resident(&mut self, start: &str, end: &str) -> Result<(), String> {
        let run = self.run(start, end, self.resident.last().map_or(0, |last| last.1))?;
        self.resident.push(run);
        Ok(())
    }
    /// A range of pages from `least` on.
    fn run(&self, start: &str, end: &str, least: u64) -> Result<(u64, u64), String> {
        let (from, to) = (hexadecimal(start)?, hexadecimal(end)?);
        match () {
            () if from >= to => Err(format!("{start} to {end} is no range of pages")),
            () if to > END => Err(format!("{end} is beyond user space, which ends at page {END:x}")),
            () if from < least => Err(format!("{start} is below the end of what comes before, {least:x}")),
            () => Ok((from, to)),
        }
    }
    fn check_resident(&self) -> Result<(), String> {
        let mut maps = self.maps.iter().peekable();
        for &(start, end) in &self.resident {
            let mut at = start;
            while at < end {
                while maps.next_if(|map| map.end <= at).is_some() {}
                match maps.peek() {
                    Some(map) if map.start <= at => at = map.end,
                    _ => return Err(format!("page {at:x} is resident, and not mapped")),
                }
            }
        }
        Ok(())
    }

    /// As [`Self::parse`] reads it.
    pub fn write(&self) -> String {
        let mut text = format!("{MAGIC} {VERSION}\nabout {}\n", self.about);
        let mut line = |line: std::fmt::Arguments<'_>| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{line}");
        };
        if let Some((vma, tables)) = self.linux {
            line(format_args!("linux {vma} {tables}"));
        }
        for map in &self.maps {
            let right = |at: usize, name| if map.rights[at] { name } else { '-' };
            let perms: String =
                [right(0, 'r'), right(1, 'w'), right(2, 'x'), if map.shared { 's' } else { 'p' }]
                    .iter()
                    .collect();
            let flags = if map.flags.is_empty() { "-".to_owned() } else { map.flags.join(",") };
            let (kind, object) = (map.kind.name(), map.object);
            line(format_args!(
                "map {:x} {:x} {perms} {kind} {object} {:x} {flags}",
                map.start, map.end, map.offset
            ));
        }
        for (start, end) in &self.resident {
            line(format_args!("res {start:x} {end:x}"));
        }
        text
    }
}

/// The rights that four letters say, and whether the mapping is shared.
pub fn rights(perms: &str) -> Result<([bool; 3], bool), String> {
    let letters = |perms: &[u8; 4]| {
        let is = |at: usize, yes: u8, no: u8| match perms[at] {
            letter if letter == yes => Some(true),
            letter if letter == no => Some(false),
            _ => None,
        };
        Some(([is(0, b'r', b'-')?, is(1, b'w', b'-')?, is(2, b'x', b'-')?], is(3, b's', b'p')?))
    };
    let read = perms.as_bytes().try_into().ok().and_then(letters);
    read.ok_or_else(|| format!("{perms:?} are not the rights of a mapping, as in r-xp"))
}

fn hexadecimal(word: &str) -> Result<u64, String> {
    u64::from_str_radix(word, 16).map_err(|_| format!("{word:?} is not a hexadecimal number"))
}

fn decimal(word: &str) -> Result<u64, String> {
    word.parse().map_err(|_| format!("{word:?} is not a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "quire-shape 1\nabout a program, and where\nlinux 192 20480\n\
        map 400 402 r-xp file 1 0 -\nmap 402 500 rw-p heap 0 0 nr,dd\nmap 7fffff 800000 rw-s file 2 1f no-me\n\
        res 400 410\nres 7fffff 800000\n";

    #[test]
    fn a_shape_is_read_as_it_was_written() {
        let shape = Shape::parse(TEXT).unwrap();
        assert_eq!(shape.write(), TEXT);
        assert_eq!(Shape::parse(&shape.write()), Ok(shape.clone()));
        assert_eq!((shape.pages(), shape.linux), (17, Some((192, 20480))));
        let last = &shape.maps[2];
        assert_eq!((last.rights, last.shared, last.object), ([true, true, false], true, 2));
        assert_eq!((last.offset, &last.flags[..]), (0x1f, &["no-me"][..]));
    }

    #[test]
    fn the_published_format_is_read_too() {
        let text =
            "# process shape: x. words\nmap 2b 2f r-xp 1 6e\nmap 30 31 ---p 0 0\nres 2b 2c\nres 2d 2f\n";
        let shape = Shape::parse(text).unwrap();
        assert_eq!((shape.maps.len(), shape.pages()), (2, 3));
        assert_eq!((shape.maps[0].kind, shape.maps[0].offset), (Kind::File, 0x6e));
        assert_eq!((shape.maps[1].kind, shape.maps[1].rights), (Kind::Anon, [false; 3]));
        // What is written is the same shape.
        assert_eq!(Shape::parse(&shape.write()), Ok(shape));
    }

    /// What is said of a file with these lines behind the first.
    fn problem(lines: &str) -> String {
        Shape::parse(&format!("quire-shape 1\n{lines}")).unwrap_err()
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_in_a_line() {
        assert_eq!(Shape::parse("").unwrap_err(), "line 1: not a shape: it should be `quire-shape 1`");
        assert_eq!(
            Shape::parse("quire-shape 2\n").unwrap_err(),
            "line 1: version 2 of the format is not known, only 1"
        );
        for (lines, said) in [
            ("", "it has no mappings"),
            ("map 1 2 r-xp anon 0 0", "line 2: a mapping has 8 words"),
            ("map 1 z r-xp anon 0 0 -", "line 2: \"z\" is not a hexadecimal number"),
            ("\nmap 2 2 r-xp anon 0 0 -", "line 3: 2 to 2 is no range of pages"),
            ("map 1 2 r-x anon 0 0 -", "line 2: \"r-x\" are not the rights of a mapping, as in r-xp"),
            ("map 1 2 r-xq anon 0 0 -", "line 2: \"r-xq\" are not the rights of a mapping, as in r-xp"),
            ("map 1 2 r-xp disk 0 0 -", "line 2: a mapping is anon, file, heap, stack or kernel"),
            ("map 1 2 r-xp file 0 0 -", "line 2: a mapping of a file has an object"),
            ("map 1 2 r-xp file -1 0 -", "line 2: \"-1\" is not an object's number"),
            ("map 1 2 r-xp anon 0 0 gd,xy", "line 2: \"xy\" is not a flag of mappings"),
            (
                "map 1 800000001 r-xp anon 0 0 -",
                "line 2: 800000001 is beyond user space, which ends at page 800000000",
            ),
            (
                "map 5 9 r-xp anon 0 0 -\nmap 8 a r-xp anon 0 0 -",
                "line 3: 8 is below the end of what comes before, 9",
            ),
            ("map 5 9 r-xp anon 0 0 -\nres 8 a", "page 9 is resident, and not mapped"),
            ("map 5 9 r-xp anon 0 0 -\nres 4 6", "page 4 is resident, and not mapped"),
            ("linux 176 many", "line 2: \"many\" is not a number"),
            ("pages 1 2", "line 2: \"pages\" is nothing that a line says, or not so"),
            ("res 1", "line 2: \"res\" is nothing that a line says, or not so"),
        ] {
            assert_eq!(problem(lines), said, "{lines:?}");
        }
    }
}
