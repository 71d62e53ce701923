# A guest of the kind that DOS was: real mode, a 386's registers, and the BIOS for everything (see tests/guests/bios).

        .code16
        .set    load_sectors, 3                 # behind the first one, which the BIOS loads
        .set    ours, 0x2000                    # segments of 32 KiB buffers: what was read,
        .set    made, 0x3000                    # and what it must be
        .set    block_words, 0x4000
        .set    extended, 0x100000              # memory that only the BIOS reaches from here
        .set    blocks, 256
        .set    blocks_each_round, 16
        .set    scratch_sector, 16384           # 8 MiB
        .set    scratch_sectors, 8
        .set    ticks, 0x46c                    # the BIOS counts them, 18.2 each second
        .set    com1, 0x3f8

        .globl  _start
_start: xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $_start, %sp
        ljmp    $0, $begin
begin:  cld
        sti
        movb    %dl, drive
        movb    $0x42, %ah
        movw    $load_packet, %si
        int     $0x13
        jnc     run
stop:   hlt
        jmp     stop

drive:  .byte   0
        .balign 4
load_packet:
        .byte   16, 0
        .word   load_sectors, 0x7e00, 0
        .quad   1
        .org    510
        .word   0xaa55

run:    movw    $com1 + 3, %dx                  # eight bits, no parity
        movb    $3, %al
        outb    %al, %dx
        movw    $ready, %si
        call    print
        xorl    %ebp, %ebp
fill:   movw    $made, %ax
        call    make_block
        movl    $made << 4, %eax
        movl    %ebp, %ebx
        shll    $15, %ebx
        addl    $extended, %ebx
        call    move
        incl    %ebp
        cmpl    $blocks, %ebp
        jb      fill
        xorl    %ebp, %ebp

round:  movw    $blocks_each_round, %cx
check:  pushw   %cx
        movw    $made, %ax
        call    make_block
        movl    %ebp, %eax
        shll    $15, %eax
        addl    $extended, %eax
        movl    $ours << 4, %ebx
        call    move
        movw    $block_words / 2, %cx
        call    compare
        movw    $lost_memory, %si
        jne     lost
        popw    %cx
        incl    %ebp
        loop    check
        cmpl    $blocks, %ebp
        jb      disk
        xorl    %ebp, %ebp
        incl    checks
        movw    $checked, %si
        movl    checks, %eax
        call    print_number

disk:   pushl   %ebp
        movl    rounds, %ebp
        addl    $blocks, %ebp
        movw    $made, %ax
        call    make_block
        popl    %ebp
        movw    $made, packet_segment
        movw    $0x4300, %ax                    # write, without verifying
        call    transfer
        movw    $ours, packet_segment
        movb    $0x42, %ah
        call    transfer
        movw    $scratch_sectors * 128, %cx
        call    compare
        movw    $lost_disk, %si
        jne     lost
        incl    rounds
        movw    $went_round, %si
        movl    rounds, %eax
        call    print_number

        movl    ticks, %eax
wait:   hlt
        cmpl    ticks, %eax
        je      wait
        incl    told
        movw    $tick, %si
        movl    told, %eax
        call    print_number
        jmp     round

lost:   call    print
        jmp     stop

# The bytes of the block number ebp, into the segment ax: each its own, and the same each time.
make_block:
        movw    %ax, %es
        imull   $0x9e3779b1, %ebp, %ebx
        xorw    %di, %di
        movw    $block_words / 2, %cx
1:      imull   $1664525, %ebx, %ebx
        addl    $1013904223, %ebx
        movl    %ebx, %eax
        stosl
        loop    1b
        ret

# Has the BIOS move a block from the address eax to the address ebx.
move:   movl    %eax, from + 2
        movb    $0x93, from + 5
        shrl    $24, %eax
        movb    %al, from + 7
        movl    %ebx, to + 2
        movb    $0x93, to + 5
        shrl    $24, %ebx
        movb    %bl, to + 7
        xorw    %ax, %ax
        movw    %ax, %es
        movw    $descriptors, %si
        movw    $block_words, %cx
        movb    $0x87, %ah
        int     $0x15
        movw    $not_moved, %si
        jc      lost
        ret

# Whether cx double words of the buffers are the same.
compare:
        pushw   %ds
        movw    $made, %ax
        movw    %ax, %es
        movw    $ours, %ax
        movw    %ax, %ds
        xorw    %si, %si
        xorw    %di, %di
        repe cmpsl
        popw    %ds
        ret

# Has the BIOS do ah to the scratch sectors.
transfer:
        movb    drive, %dl
        movw    $packet, %si
        int     $0x13
        movw    $not_transferred, %si
        jc      lost
        ret

# Says the text at si and the number eax, a dot and the end of the line.
print_number:
        pushl   %eax
        call    print
        popl    %eax
        movw    $digits_end, %si
        movl    $10, %ebx
1:      xorl    %edx, %edx
        divl    %ebx
        addb    $'0', %dl
        decw    %si
        movb    %dl, (%si)
        testl   %eax, %eax
        jnz     1b

# Says the text at si on the screen and on the serial port.
print:  lodsb
        testb   %al, %al
        jz      2f
        movw    $7, %bx
        movb    $0x0e, %ah
        pushw   %si
        pushl   %ebp
        pushw   %ax
        int     $0x10
        popw    %ax
        popl    %ebp
        popw    %si
        movb    %al, %ah
        movw    $com1 + 5, %dx
1:      inb     %dx, %al
        testb   $0x20, %al
        jz      1b
        movw    $com1, %dx
        movb    %ah, %al
        outb    %al, %dx
        jmp     print
2:      ret

ready:          .asciz  "VMNETX-GUEST-READY bios\r\n"
tick:           .asciz  "VMNETX-TICK "
checked:        .asciz  "CHECKED-"
went_round:     .asciz  "ROUND-0-"
lost_memory:    .asciz  "LOST-MEMORY\r\n"
lost_disk:      .asciz  "LOST-DISK0\r\n"
not_moved:      .asciz  "LOST-MEMORY: the BIOS does not move it\r\n"
not_transferred: .asciz "LOST-DISK0: the BIOS does not read or write it\r\n"
digits:         .space  10
digits_end:     .asciz  "\r\n"

        .balign 4
told:   .long   0
checks: .long   0
rounds: .long   0
packet: .byte   16, 0
        .word   scratch_sectors, 0
packet_segment:
        .word   0
        .quad   scratch_sector
descriptors:
        .space  16
from:   .word   0xffff, 0, 0, 0
to:     .word   0xffff, 0, 0, 0
        .space  16
        .org    512 * (1 + load_sectors)
