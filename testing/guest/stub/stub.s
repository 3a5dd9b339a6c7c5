# What is the least that counts as a guest? It is there at once, says so on its console, and obeys the power button; between
# that it halts, and its virtual machine takes next to no processor time. ../README.md says which words it knows.
#
# QEMU's firmware (qboot) enters it as the PVH boot protocol says: 32-bit, no paging, flat segments, interrupts off, EBX at
# struct hvm_start_info. It runs where it is loaded, on one processor, with or without KVM. Nothing calls it back but the
# interrupt, which finds it halted: no routine keeps registers for its caller.

        .intel_syntax noprefix
        .code32

        .set COM1,              0x3f8
        .set DEBUG_EXIT,        0x501           # isa-debug-exit
        # QEMU's include/hw/i386/microvm.h and include/hw/acpi/generic_event_device.h: the microvm machine has no power
        # management of the PC's, but a "generic event device" in memory, and an interrupt that says: look there.
        .set GED_EVENTS,        0xfea00000      # reading clears it
        .set GED_POWER_BUTTON,  2
        .set GED_IRQ,           9
        .set GED_SLEEP,         0xfea00200
        .set GED_SLEEP_S5,      0x34            # type 5, enable
        .set GED_RESET,         0xfea00202
        .set GED_RESET_VALUE,   0x42
        .set IO_APIC,           0xfec00000
        .set LOCAL_APIC,        0xfee00000
        .set VECTOR,            0x30            # of the power button
        .set VECTOR_SPURIOUS,   0x3f

        # The note by which QEMU finds the entry; it reads eight bytes of a 64-bit file's.
        .section .note.pvh, "a", @note
        .balign 4
        .long 4, 8, 18                          # bytes of name and value; XEN_ELFNOTE_PHYS32_ENTRY
        .asciz "Xen"
        .quad start

        .text
        .globl start
start:  mov     esp, offset stack_end
        mov     ebp, [ebx + 24]                 # the command line
        lgdt    [gdt_pointer]
        lidt    [idt_pointer]
        ljmp    0x8, offset 1f
1:      mov     eax, 0x10
        mov     ds, eax
        mov     es, eax
        mov     ss, eax

        # The old timer runs from the start, and would wake QEMU 36 times a second: let it expire once, unheard.
        mov     al, 0xff
        out     0x21, al
        out     0xa1, al
        mov     al, 0x30
        out     0x43, al
        mov     al, 1
        out     0x40, al
        xor     al, al
        out     0x40, al

        # The power button's interrupt, edge-triggered, to processor 0; a gate's offset is split.
        mov     eax, offset on_power_button
        mov     [idt + VECTOR * 8], ax
        shr     eax, 16
        mov     [idt + VECTOR * 8 + 6], ax
        mov     eax, offset on_spurious
        mov     [idt + VECTOR_SPURIOUS * 8], ax
        shr     eax, 16
        mov     [idt + VECTOR_SPURIOUS * 8 + 6], ax
        mov     dword ptr [LOCAL_APIC + 0x350], 0x10000         # the old controller's line: masked
        mov     dword ptr [LOCAL_APIC + 0xf0], 0x100 | VECTOR_SPURIOUS
        mov     dword ptr [IO_APIC], 0x11 + GED_IRQ * 2
        mov     dword ptr [IO_APIC + 0x10], 0
        mov     dword ptr [IO_APIC], 0x10 + GED_IRQ * 2
        mov     dword ptr [IO_APIC + 0x10], VECTOR

        mov     esi, offset ready
        call    print

        mov     edi, offset word_exit
        call    find
        jnz     2f
        xor     eax, eax                        # the digits behind it
1:      movzx   ecx, byte ptr [esi]
        sub     ecx, '0'
        cmp     ecx, 9
        ja      1f
        imul    eax, eax, 10
        add     eax, ecx
        inc     esi
        jmp     1b
1:      mov     dx, DEBUG_EXIT
        out     dx, al
2:      mov     edi, offset word_reset
        call    find
        jnz     3f
        mov     byte ptr [GED_RESET], GED_RESET_VALUE
3:      int     VECTOR                          # the button may have been pressed before there was an interrupt for it
        sti
4:      hlt
        jmp     4b

on_power_button:
        test    dword ptr [GED_EVENTS], GED_POWER_BUTTON
        jz      1f
        mov     edi, offset word_ignore
        call    find
        jz      1f
        mov     esi, offset bye
        call    print
        mov     byte ptr [GED_SLEEP], GED_SLEEP_S5
1:      mov     dword ptr [LOCAL_APIC + 0xb0], 0
on_spurious:
        iretd

# Prints the string at ESI, as fast as the console takes it.
print:  mov     dx, COM1 + 5
1:      in      al, dx
        test    al, 0x20
        jz      1b
        lodsb
        test    al, al
        jz      2f
        mov     dx, COM1
        out     dx, al
        jmp     print
2:      ret

# Looks for the word at EDI, which ends in "=" where a value follows. Sets the zero flag if it is there, and ESI behind it.
find:   mov     esi, ebp
        test    esi, esi
        jz      5f
1:      mov     ebx, edi
2:      mov     al, [ebx]                       # a word of ours, letter by letter
        test    al, al
        jz      4f
        cmp     al, [esi]
        jne     3f
        inc     ebx
        inc     esi
        jmp     2b
3:      mov     al, [esi]                       # another one: on to the next
        test    al, al
        jz      5f
        inc     esi
        cmp     al, ' '
        jne     3b
        jmp     1b
4:      cmp     byte ptr [ebx - 1], '='
        je      6f
        cmp     byte ptr [esi], ' '
        je      6f
        cmp     byte ptr [esi], 0
        jne     3b
6:      ret
5:      or      esp, esp                        # not zero
        ret

ready:          .asciz "stub: ready\r\n"
bye:            .asciz "stub: powering off\r\n"
word_exit:      .asciz "stub.exit="
word_reset:     .asciz "stub.reset"
word_ignore:    .asciz "stub.ignore-poweroff"

        .balign 8
gdt:            .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff         # code and data, 4 GiB each
gdt_pointer:    .word . - gdt - 1
                .long gdt
idt_pointer:    .word idt_end - idt - 1
                .long idt

        .data
        .balign 8
# Interrupt gates of ring 0 in the code segment; what is not filled in above triple-faults, which resets.
idt:            .rept VECTOR_SPURIOUS + 1
                .word 0, 0x8, 0x8e00, 0
                .endr
idt_end:

        .bss
        .balign 16
                .skip 4096
stack_end:
