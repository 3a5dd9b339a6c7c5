# What has a process used when the first instruction of its program runs?
#
# Without arguments: writes the answer to descriptor 2, as a struct timespec, and ends. So it stands in QEMU's place, where no
# other process could read it so exactly: of a process that runs, /proc tells what it had used at the kernel's last tick.
#
# With arguments: stops itself, and when it is continued, executes them. While it stands, /proc tells exactly what its process
# has used, and nothing but the execution of that program is still to come.

        .intel_syntax noprefix

        # Linux's system calls (asm/unistd_64.h), a clock (linux/time.h) and a signal (asm/signal.h).
        .set SYS_write,                 1
        .set SYS_getpid,                39
        .set SYS_execve,                59
        .set SYS_exit,                  60
        .set SYS_kill,                  62
        .set SYS_clock_gettime,         228
        .set CLOCK_PROCESS_CPUTIME_ID,  2
        .set SIGSTOP,                   19

        .text
        .globl _start
_start: cmp     qword ptr [rsp], 1              # the number of arguments, the program's name among them
        ja      1f

        mov     eax, SYS_clock_gettime
        mov     edi, CLOCK_PROCESS_CPUTIME_ID
        lea     rsi, [rsp - 64]
        syscall
        mov     eax, SYS_write
        mov     edi, 2
        mov     edx, 16
        syscall
        mov     eax, SYS_exit
        xor     edi, edi
        syscall

1:      mov     eax, SYS_getpid
        syscall
        mov     edi, eax
        mov     esi, SIGSTOP
        mov     eax, SYS_kill
        syscall
        mov     rcx, [rsp]
        lea     rdx, [rsp + rcx * 8 + 16]       # the environment, behind the arguments and their null
        lea     rsi, [rsp + 16]                 # the arguments without the first
        mov     rdi, [rsi]
        mov     eax, SYS_execve
        syscall
        mov     eax, SYS_exit
        mov     edi, 127
        syscall
