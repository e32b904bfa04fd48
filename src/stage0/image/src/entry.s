# The first instructions, the tables that they need, and what exceptions lead to.
#
# On entry: 64-bit mode, CR3 = page_tables (the image's first page), interrupts off, everything else unknown. The processor's state
# at launch is measured, so that the entry and CR3 are what they should be.

    .set PAGE_PRESENT, 0x63          # present, writable, accessed, dirty: the processor never writes to the tables
    .set PAGE_LARGE, 0x80

# ---- Page tables: [0, 512 GiB) private, and the same memory shared from 512 GiB on. All are pages of 1 GiB. ----------------
    .section .tables, "aw", @progbits
    .balign 0x1000
    .global page_tables
page_tables:
    .quad private_gib + PAGE_PRESENT + C_BIT
    .quad shared_gib + PAGE_PRESENT + C_BIT
    .fill 510, 8, 0
private_gib:
    .set i, 0
    .rept 512
    .quad (i << 30) + PAGE_PRESENT + PAGE_LARGE + C_BIT
    .set i, i + 1
    .endr
shared_gib:
    .set i, 0
    .rept 512
    .quad (i << 30) + PAGE_PRESENT + PAGE_LARGE
    .set i, i + 1
    .endr

# ---- Segments: what Linux' boot protocol asks for (__BOOT_CS 0x10, __BOOT_DS 0x18) ---------------------------------------
    .section .rodata.segments, "a", @progbits
    .balign 8
segments:
    .quad 0, 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
segments_end:
segments_pointer:
    .word segments_end - segments - 1
    .quad segments
interrupts_pointer:
    .word 32 * 16 - 1
    .quad interrupts

    .section .bss.entry, "aw", @nobits
    .balign 16
interrupts:
    .skip 32 * 16
entered:
    .skip 4

# ---- Entry -----------------------------------------------------------------------------------------------------------
    .section .text.entry, "ax", @progbits
    .global entry
entry:
    cli
    cld
    # SECURITY: all processors have the same measured state, so the host could run a second one into the middle of the first
    # one's work. Only the first to come goes on; memory is private, so the host can't reset this.
    lock bts dword ptr [rip + entered], 0
    jc park
    lea rsp, [rip + stack_top]
    lgdt [rip + segments_pointer]
    mov eax, 0x18
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    push 0x10
    lea rax, [rip + 1f]
    push rax
    retfq
1:
    # Compiled code uses SSE: no emulation (EM), no task switch (TS), monitor (MP); OSFXSR and OSXMMEXCPT.
    mov rax, cr0
    and rax, -13
    or rax, 2
    mov cr0, rax
    mov rax, cr4
    or rax, 0x600
    mov cr4, rax
    # SECURITY: the host can inject any exception at any time. None is expected, so every vector ends the guest.
    lea rdi, [rip + interrupts]
    lea rdx, [rip + exception]
    mov ecx, 32
2:
    mov [rdi], dx                   # offset 15:0
    mov word ptr [rdi + 2], 0x10
    mov word ptr [rdi + 4], 0x8e00  # present, interrupt gate
    mov rax, rdx
    shr rax, 16
    mov [rdi + 6], ax               # offset 31:16
    mov qword ptr [rdi + 8], 0      # the image is below 4 GiB
    add rdi, 16
    dec ecx
    jnz 2b
    lidt [rip + interrupts_pointer]
    xor ebp, ebp
    call main
    ud2

exception:
    mov edi, EXCEPTION
    lea rsp, [rip + stack_top]
    call terminate
    ud2

# ---- Memory functions that the compiler calls ---------------------------------------------------------------------------
    .section .text.memory, "ax", @progbits
    .global memcpy, memmove, memset, memcmp, bcmp
memmove:
    mov rax, rdi
    sub rax, rsi
    cmp rax, rdx
    jb 3f                           # the destination starts within the source
memcpy:
    mov rax, rdi
    mov rcx, rdx
    rep movsb
    ret
3:
    mov rax, rdi
    mov rcx, rdx
    lea rdi, [rdi + rdx - 1]
    lea rsi, [rsi + rdx - 1]
    std
    rep movsb
    cld
    ret
memset:
    mov r8, rdi
    mov eax, esi
    mov rcx, rdx
    rep stosb
    mov rax, r8
    ret
memcmp:
bcmp:
    xor eax, eax
    xor ecx, ecx
4:
    cmp rcx, rdx
    je 5f
    movzx eax, byte ptr [rdi + rcx]
    movzx r8d, byte ptr [rsi + rcx]
    inc rcx
    sub eax, r8d
    je 4b
5:
    ret
