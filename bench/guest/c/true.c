// true: exits with status 0 at its first instruction, no C library, no data: the shortest whole life of a process.
__attribute__((naked, noreturn)) void _start(void)
{
    __asm__("xor %edi, %edi\n\tmov $231, %eax\n\tsyscall\n\thlt");
}
