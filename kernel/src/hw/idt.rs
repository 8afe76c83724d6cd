//! Entry to the kernel and return from it: the 256 vectors, `syscall`, and the frame that both build.
//!
//! # The three ways in
//! * **Exceptions and interrupts**: a stub per vector pushes what is missing of a [`TrapFrame`] and jumps to
//!   `vector_entry`, which exchanges GS if it came from user mode, and calls `crate::trap::trap`.
//! * **System calls**: `syscall_entry` changes stacks itself and calls `crate::trap::syscall`.
//! * **Double fault, NMI, machine check** can come anywhere, also where GS does not yet or no longer agree with the
//!   privilege level, and with FSGSBASE a program can give GS any value. `paranoid_entry` therefore asks nobody:
//!   it takes the CPU's words from the top of its own stack (see `gdt.rs`) and puts back whatever GS was. These
//!   never reach the rest of the kernel: [`paranoid`] deals with them, so none sleeps, and none returns to user mode by
//!   way of signals.
//!
//! All are entered with interrupts off, and return with interrupts off. Each clears DF, which the ABI wants, and
//! AC, so that SMAP holds while handlers run (`syscall` does both by its mask).
//!
//! # The way out
//! `sysretq` is fast, but takes RIP from RCX and the flags from R11, and on Intel faults *in the kernel* with the user's
//! stack if RIP isn't canonical. So it is used only if the frame still is what `syscall` made of it and RIP is below
//! 2^47; else `iretq`. That too would fault in the kernel for an RIP that isn't canonical: the return goes to the first
//! address after user space instead, where the program faults in user mode.
//!
//! A debug exception can't hit the first instructions of `syscall_entry` (the "pop SS" trap): programs can't set
//! debug registers, and `syscall` clears TF.

use core::arch::{asm, global_asm, naked_asm};

use addr::USER_END;

use super::{
    apic, clac, cpu, gdt,
    marker::{enter_periodic, leave_periodic},
};

/// Interrupts are on.
pub const RFLAGS_IF: u64 = 1 << 9;
const RFLAGS_TF: u64 = 1 << 8;
const RFLAGS_RF: u64 = 1 << 16;
/// Cleared by `syscall`: TF IF DF IOPL NT RF AC.
const SYSCALL_MASK: u64 = 0x5_7700;
/// The registers of whoever entered the kernel, lowest address first. Also what `return_to_user` loads.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct TrapFrame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    /// The vector, or RAX at a system call: its number.
    pub orig_rax: u64,
    /// The exception's error code, else 0.
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

impl TrapFrame {
    /// The frame with which a program begins at `rip` on stack `rsp`, all other registers 0.
    pub fn user(rip: u64, rsp: u64) -> Self {
        Self {
            rip,
            rsp,
            cs: gdt::USER_CS.into(),
            ss: gdt::USER_SS.into(),
            rflags: RFLAGS_IF | 2,
            ..Self::default()
        }
    }
    /// Whether the entry was from user mode.
    pub fn is_user(&self) -> bool {
        self.cs & 3 == 3
    }
}

/// Bytes of a frame.
const FRAME: usize = size_of::<TrapFrame>();

// The stack is a multiple of 16 at each `call`: the CPU aligns it before it pushes five words, and a frame has 22.
const _: () = assert!(FRAME == 22 * 8 && FRAME.is_multiple_of(16));

global_asm!(
    r#"
    .macro PUSH_REGISTERS
    push rdi
    push rsi
    push rdx
    push rcx
    push rax
    push r8
    push r9
    push r10
    push r11
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    .endm

    .macro POP_REGISTERS
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    pop r11
    pop r10
    pop r9
    pop r8
    pop rax
    pop rcx
    pop rdx
    pop rsi
    pop rdi
    .endm

    .text
    .balign 16
    .global vector_stubs, return_user, syscall_entry, timer_entry, wake_entry, sync_entry
vector_stubs:                           # 16 bytes each
    .set vec, 0
    .rept 256
    .balign 16
    .if vec != 8 && (vec < 10 || vec > 14) && vec != 17 && vec != 21 && vec != 29 && vec != 30
    push 0                              # no error code comes from the CPU
    .endif
    .byte 0x68                          # push vec
    .long vec
    .if vec == 2 || vec == 8 || vec == 18
    jmp paranoid_entry
    .else
    jmp vector_entry
    .endif
    .set vec, vec + 1
    .endr

    .balign 16
vector_entry:
    cld
    PUSH_REGISTERS
    "#,
    clac!(),
    r#"
    mov rdi, rsp
    test byte ptr [rsp + {cs}], 3
    jz 2f
    swapgs
    xor ebp, ebp                        # backtraces end here
2:  call {trap}
    test byte ptr [rsp + {cs}], 3
    jz 4f
return_user:
    # An address that isn't canonical would fault in iretq, in the kernel; see the top.
    mov rax, [rsp + {rip}]
    mov rcx, rax
    shl rcx, 16
    sar rcx, 16
    cmp rax, rcx
    je 3f
    movabs rax, {user_end}
    mov [rsp + {rip}], rax
3:  swapgs
4:
    "#,
    leave_periodic!(),
    r#"
    POP_REGISTERS
    add rsp, 16
    iretq

timer_entry:
    "#,
    enter_periodic!(),
    r#"
    jmp vector_stubs + 16 * {timer}

    .balign 16
syscall_entry:
    swapgs
    mov gs:[{user_rsp}], rsp
    mov rsp, gs:[{kernel_rsp}]
    push {user_ss}
    push qword ptr gs:[{user_rsp}]
    push r11                            # rflags
    push {user_cs}
    push rcx                            # rip
    push 0
    push rax
    PUSH_REGISTERS
    xor ebp, ebp
    mov rdi, rsp
    call {syscall}
    mov rcx, [rsp + {rcx}]
    mov r11, [rsp + {r11}]
    cmp rcx, [rsp + {rip}]
    jne return_user
    cmp r11, [rsp + {rflags}]
    jne return_user
    mov rax, rcx
    shr rax, 47
    jnz return_user
    test r11d, {no_sysret}
    jnz return_user
    cmp qword ptr [rsp + {cs}], {user_cs}
    jne return_user
    POP_REGISTERS
    mov rsp, [rsp + {rsp} - {orig_rax}]
    swapgs                              # what comes here on the user's stack comes on stacks of its own
    sysretq

    .balign 16
paranoid_entry:
    cld
    PUSH_REGISTERS
    "#,
    clac!(),
    r#"
    mov ecx, {gs_base}
    rdmsr
    mov ebx, eax                        # RBX, R12: GS as it was
    mov r12d, edx
    mov rax, [rsp + {frame}]            # top of this stack: this CPU's words
    mov rdx, rax
    shr rdx, 32
    wrmsr
    mov rdi, rsp
    call {paranoid}
    mov ecx, {gs_base}
    mov eax, ebx
    mov edx, r12d
    wrmsr
    POP_REGISTERS
    add rsp, 16
    iretq

    # Two interrupts that use nothing by GS, so that they need not care where they come from: they save what a call may
    # change, and no more.
wake_entry:
    push rax
    lea rax, [rip + {on_wake}]
    jmp light_entry
sync_entry:
    push rax
    lea rax, [rip + {on_sync}]
light_entry:
    cld
    push rcx
    push rdx
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    "#,
    clac!(),
    r#"
    call rax                            # after 5 + 9 words the stack is aligned
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rax
    iretq
    "#,
    trap = sym crate::trap::trap,
    syscall = sym crate::trap::syscall,
    paranoid = sym paranoid,
    on_sync = sym apic::on_sync,
    on_wake = sym apic::on_wake,
    timer = const apic::VECTOR_TIMER,
    cs = const core::mem::offset_of!(TrapFrame, cs),
    rip = const core::mem::offset_of!(TrapFrame, rip),
    rcx = const core::mem::offset_of!(TrapFrame, rcx),
    r11 = const core::mem::offset_of!(TrapFrame, r11),
    rsp = const core::mem::offset_of!(TrapFrame, rsp),
    rflags = const core::mem::offset_of!(TrapFrame, rflags),
    orig_rax = const core::mem::offset_of!(TrapFrame, orig_rax),
    frame = const FRAME,
    user_end = const USER_END,
    user_rsp = const cpu::USER_RSP,
    kernel_rsp = const cpu::KERNEL_RSP,
    user_ss = const gdt::USER_SS,
    user_cs = const gdt::USER_CS,
    no_sysret = const RFLAGS_TF | RFLAGS_RF,
    gs_base = const cpu::MSR_GS_BASE,
);

unsafe extern "C" {
    fn vector_stubs();
    fn timer_entry();
    fn wake_entry();
    fn sync_entry();
    fn syscall_entry();
}

/// Load the registers in `frame` and go to user mode. Interrupts are off; what is on the stack is forgotten.
///
/// # Safety
/// `frame` lies on the calling thread's kernel stack, and is complete and one of a program's: user segments, interrupts
/// on.
#[unsafe(naked)]
pub unsafe extern "C" fn return_to_user(frame: *mut TrapFrame) -> ! {
    naked_asm!("cli", "mov rsp, rdi", "jmp return_user")
}

/// An entry of the interrupt descriptor table (SDM vol. 3A, figure 6-8).
#[repr(C)]
#[derive(Clone, Copy)]
struct Gate {
    offset_low: u16,
    selector: u16,
    ist: u8,
    /// 0x8e: present, interrupt gate (IF is cleared); 0x60 for user mode's `int`.
    kind: u8,
    offset_middle: u16,
    offset_high: u32,
    _reserved: u32,
}

#[repr(C, align(4096))]
struct Table(core::cell::UnsafeCell<[Gate; 256]>);
// SAFETY: written by `init` alone, before any other CPU runs.
unsafe impl Sync for Table {}

static TABLE: Table = Table(core::cell::UnsafeCell::new(
    [Gate { offset_low: 0, selector: 0, ist: 0, kind: 0, offset_middle: 0, offset_high: 0, _reserved: 0 };
        256],
));

/// Fill the table that all CPUs share.
pub fn init() {
    let stubs = vector_stubs as *const () as u64;
    // SAFETY: the boot CPU, before anything uses the table.
    let gates = unsafe { &mut *TABLE.0.get() };
    for (vector, gate) in gates.iter_mut().enumerate() {
        let at = match vector as u8 {
            apic::VECTOR_TIMER => timer_entry as *const () as u64,
            apic::VECTOR_WAKE => wake_entry as *const () as u64,
            apic::VECTOR_SYNC => sync_entry as *const () as u64,
            _ => stubs + 16 * vector as u64,
        };
        *gate = Gate {
            offset_low: at as u16,
            selector: gdt::KERNEL_CS,
            ist: match vector {
                2 => gdt::IST_NMI,
                8 => gdt::IST_DOUBLE_FAULT,
                18 => gdt::IST_MACHINE_CHECK,
                _ => 0,
            },
            // Breakpoint and overflow are for programs to raise.
            kind: if matches!(vector, 3 | 4) { 0xee } else { 0x8e },
            offset_middle: (at >> 16) as u16,
            offset_high: (at >> 32) as u32,
            _reserved: 0,
        };
    }
}

/// Use the table on this CPU.
pub(super) fn load() {
    let pointer = gdt::TablePointer {
        limit: size_of::<Table>() as u16 - 1,
        base: TABLE.0.get().expose_provenance() as u64,
    };
    // SAFETY: the table is complete and lives for ever.
    unsafe { asm!("lidt [{}]", in(reg) &pointer, options(readonly, nostack, preserves_flags)) }
}

/// Let user mode enter by `syscall` on this CPU (SDM vol. 3A, 5.8.8).
pub(super) fn init_syscall() {
    const STAR: u32 = 0xc000_0081;
    const LSTAR: u32 = 0xc000_0082;
    const FMASK: u32 = 0xc000_0084;
    // SAFETY: the entry is complete, and the selectors are those of the descriptors in the GDT.
    unsafe {
        cpu::wrmsr(STAR, u64::from(gdt::SYSRET_BASE) << 48 | u64::from(gdt::KERNEL_CS) << 32);
        cpu::wrmsr(LSTAR, syscall_entry as *const () as u64);
        cpu::wrmsr(FMASK, SYSCALL_MASK);
    }
}

/// Double fault, NMI and machine check; GS is the kernel's, interrupts are off, the stack is the exception's own.
extern "C" fn paranoid(frame: &mut TrapFrame) {
    match frame.orig_rax {
        2 => crate::panic::on_nmi(),
        8 => {
            let at = cpu::read_cr2();
            if super::paging::is_stack_guard(at) || super::paging::is_stack_guard(frame.rsp) {
                crate::panic::die(frame, format_args!("kernel stack overflow at {at:#x}"))
            }
            crate::panic::die(frame, format_args!("double fault, cr2 {at:#x}"))
        }
        _ => crate::panic::die(frame, format_args!("machine check")),
    }
}
