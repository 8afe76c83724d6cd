//! Markers: no-operation instructions by which a kernel or a program tells the tracer what it does.
//!
//! A marker is `nopl imm32(%rax,%rax,1)`: the bytes `0f 1f 84 00` and a 32-bit number, little-endian. Every x86-64
//! processor executes it as nothing, in any mode; the tracer recognises its bytes when the code is translated.

/// A recognised marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Marker {
    /// The CPU's window opens: what it does from here on is counted.
    WindowBegin = 0x5151_0001,
    /// The CPU's window closes.
    WindowEnd = 0x5151_0002,
    /// An operation begins, the unit that averages are taken over.
    OperationBegin = 0x5151_0003,
    /// The operation ends.
    OperationEnd = 0x5151_0004,
    /// From here on page frames are zeroed: counted apart.
    ClearingBegin = 0x5151_0005,
    /// The zeroing ends.
    ClearingEnd = 0x5151_0006,
    /// Periodic work begins, which no operation asked for: counted apart.
    PeriodicBegin = 0x5151_0007,
    /// The periodic work ends. Kernels may say so on every return from an interrupt: it says nothing elsewhere.
    PeriodicEnd = 0x5151_0008,
    /// The first program is about to run.
    RunBegin = 0x5151_0009,
    /// The first program has ended.
    RunEnd = 0x5151_000a,
    /// A page fault has been entered.
    Fault = 0x5151_000b,
    /// An epoch of a kernel's reference counts has ended.
    Epoch = 0x5151_000c,
    /// A grace period of its has ended.
    GracePeriod = 0x5151_000d,
    /// The page fault gives the page a frame.
    FaultNew = 0x5151_000e,
    /// It enters into a table what the page has already.
    FaultFill = 0x5151_000f,
    /// It finds an entry that grants less than the page does.
    FaultRepair = 0x5151_0010,
    /// It copies the page's frame.
    FaultCopy = 0x5151_0011,
}

/// The bytes before the number.
const OPCODE: [u8; 4] = [0x0f, 0x1f, 0x84, 0x00];

impl Marker {
    const ALL: [Self; 17] = [
        Self::WindowBegin,
        Self::WindowEnd,
        Self::OperationBegin,
        Self::OperationEnd,
        Self::ClearingBegin,
        Self::ClearingEnd,
        Self::PeriodicBegin,
        Self::PeriodicEnd,
        Self::RunBegin,
        Self::RunEnd,
        Self::Fault,
        Self::Epoch,
        Self::GracePeriod,
        Self::FaultNew,
        Self::FaultFill,
        Self::FaultRepair,
        Self::FaultCopy,
    ];

    /// The marker that these bytes of one instruction are, if they are one.
    pub fn decode(instruction: &[u8]) -> Option<Self> {
        let number: [u8; 4] = instruction.strip_prefix(&OPCODE)?.try_into().ok()?;
        Self::from_number(u32::from_le_bytes(number))
    }

    /// The marker of this number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|marker| *marker as u32 == number)
    }
}

/// Whether the instruction reads and writes its memory operand as one: it has a LOCK prefix, or is an exchange with
/// memory, which needs none (Intel SDM vol. 3A, 8.1.2.2).
pub fn is_locked(instruction: &[u8]) -> bool {
    let mut rest = instruction;
    while let [prefix, after @ ..] = rest {
        match prefix {
            0xf0 => return true,
            // Operand and address size, repetition, segments.
            0x66 | 0x67 | 0xf2 | 0xf3 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 => rest = after,
            0x40..=0x4f => {
                rest = after;
                break;
            }
            _ => break,
        }
    }
    matches!(rest, [0x86 | 0x87, operands, ..] if *operands < 0xc0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_known_by_all_of_their_bytes() {
        assert_eq!(Marker::decode(&[0x0f, 0x1f, 0x84, 0, 1, 0, 0x51, 0x51]), Some(Marker::WindowBegin));
        assert_eq!(Marker::decode(&[0x0f, 0x1f, 0x84, 0, 10, 0, 0x51, 0x51]), Some(Marker::RunEnd));
        for other in [
            // What compilers pad with.
            &[0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0][..],
            &[0x0f, 0x1f, 0x84, 0, 18, 0, 0x51, 0x51],
            &[0x0f, 0x1f, 0x84, 0, 1, 0, 0x51],
            &[0x66, 0x0f, 0x1f, 0x84, 0, 1, 0, 0x51, 0x51],
            &[0x0f, 0x1f, 0x84, 0x40, 1, 0, 0x51, 0x51],
            &[0x90],
            &[],
        ] {
            assert_eq!(Marker::decode(other), None, "{other:x?}");
        }
    }

    #[test]
    fn every_number_is_its_markers() {
        for (i, marker) in Marker::ALL.into_iter().enumerate() {
            assert_eq!(marker as u32, 0x5151_0001 + i as u32);
            assert_eq!(Marker::from_number(marker as u32), Some(marker));
        }
    }

    #[test]
    fn locked_instructions_are_told_from_others() {
        let locked: [&[u8]; 5] = [
            &[0xf0, 0x48, 0x0f, 0xc1, 0x07],       // lock xadd [rdi], rax
            &[0x66, 0xf0, 0x83, 0x07, 0x01],       // lock add word [rdi], 1
            &[0x48, 0x87, 0x07],                   // xchg [rdi], rax
            &[0x86, 0x07],                         // xchg [rdi], al
            &[0x65, 0x48, 0x87, 0x04, 0x25, 0, 0], // xchg gs:[0], rax
        ];
        let plain: [&[u8]; 6] = [
            &[0x48, 0x87, 0xc7],       // xchg rdi, rax
            &[0x48, 0x89, 0x07],       // mov [rdi], rax
            &[0xf3, 0x48, 0xab],       // rep stosq
            &[0x48, 0x0f, 0xb1, 0x0f], // cmpxchg [rdi], rcx
            &[0x90],                   // nop
            &[],
        ];
        assert!(locked.iter().all(|bytes| is_locked(bytes)));
        assert!(!plain.iter().any(|bytes| is_locked(bytes)));
    }
}
