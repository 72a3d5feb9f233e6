//! Products of whole matrices of bytes on AMX, the tiles of Intel's processors for servers.
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, "Programming with Intel Advanced Matrix Extensions".

#![allow(unsafe_code)] // instructions that have no stable intrinsics

use std::arch::asm;
use std::marker::PhantomData;
use std::mem::offset_of;

use super::activations::{Block, PARTS};
use super::lanes::{Bytes, Matrices, ROWS, Sixteen};
use crate::kernels::simd::x86::cpuid;

/// The proof that the processor has AMX for bytes, and that the system lets this process use it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amx(());

impl Amx {
    pub(crate) fn detect() -> Option<Self> {
        /// `AMX-TILE` and `AMX-INT8` in what the seventh leaf has in `edx`.
        const TILES_OF_BYTES: u32 = 1 << 24 | 1 << 25;
        let has = cpuid(0, 0).eax >= 7 && cpuid(7, 0).edx & TILES_OF_BYTES == TILES_OF_BYTES;
        (has && permitted()).then_some(Self(()))
    }
}

/// Asks the system for the tiles, 8 KiB of each thread's state, which it saves only for processes that did.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    // From the kernel's <asm/prctl.h> and its table of the processor's state; `libc` has neither.
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: two numbers, and nothing in memory. A kernel that does not know the request says so.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// What each of the tiles holds: `ldtilecfg`'s 64 bytes.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// An instruction that changes every tile.
macro_rules! each_tile {
    ($($asm:tt)*) => {
        asm!(
            $($asm)*,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
        )
    };
}

/// This thread's tiles: 0 for sums, 1 and 2 for a block of activations and of weights, 3 and 4 for half of one.
#[derive(Debug)]
pub(crate) struct Tiles(PhantomData<*const ()>); // of this thread: no other may have it

impl Drop for Tiles {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: `self` exists, so there are tiles; what is in them is this thread's alone, which had one `Tiles`.
        unsafe { each_tile!("tilerelease", options(nostack, nomem, preserves_flags)) }
    }
}

impl Matrices for Amx {
    type Tiles = Tiles;

    #[inline(always)]
    fn tiles(self) -> Tiles {
        let mut shapes =
            Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        shapes.row_bytes[..5].copy_from_slice(&[64, 32, 64, 16, 64]);
        shapes.rows[..5].copy_from_slice(&[16, 16, 8, 16, 4]);
        // SAFETY: `self` exists, so there are tiles and this process may use them. The shapes are within those of the first palette: eight
        // tiles of at most 16 rows of at most 64 bytes; the rest is zero, as it must be.
        unsafe { each_tile!("ldtilecfg [{}]", in(reg) &shapes, options(nostack, readonly, preserves_flags)) }
        Tiles(PhantomData)
    }

    #[inline(always)]
    fn products<const FROM: usize, const TO: usize>(
        _: &Tiles,
        w: &[Bytes; 8],
        x: &Sixteen,
        part: usize,
        sums: &mut [Bytes; ROWS],
    ) {
        const { assert!(TO == FROM + 8 || TO == FROM + 4, "a block or half of one") };
        assert!(part < PARTS, "part {part}");
        let w = w[FROM..].as_ptr();
        let quad = part * size_of::<Block>() + offset_of!(Block, q) + FROM * size_of::<[i8; 4]>();
        let x = x.as_ptr().cast::<u8>().wrapping_add(quad);
        /// Multiplies tiles of activations and of weights.
        macro_rules! multiply {
            ($x:literal, $w:literal) => {
                asm!(
                    "tilezero tmm0",
                    concat!("tileloadd tmm", $w, ", [{w} + {line}]"),
                    concat!("tileloadd tmm", $x, ", [{x} + {row}]"),
                    concat!("tdpbssd tmm0, tmm", $x, ", tmm", $w),
                    "tilestored [{sums} + {line}], tmm0",
                    w = in(reg) w,
                    x = in(reg) x,
                    sums = in(reg) sums.as_mut_ptr(),
                    line = in(reg) size_of::<Bytes>(),
                    row = in(reg) size_of::<[Block; PARTS]>(),
                    options(nostack, preserves_flags),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _,
                )
            };
        }
        // SAFETY: there is a `Tiles` of this thread, so the tiles have its shapes. Read are `TO - FROM` groups of each row of activations,
        // 32 or 16 bytes of `q` of block `part`, from a row to the next as far as `x` has them, and as many groups of weights, 64 bytes each;
        // written are 16 rows of sums, of 64 bytes.
        unsafe {
            if const { TO - FROM == 8 } {
                multiply!(1, 2);
            } else {
                multiply!(3, 4);
            }
        }
    }
}
