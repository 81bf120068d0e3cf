//! AMX: eight registers of 16 rows × 64 bytes. Rust has no stable names for its instructions, so they are written out.
#![allow(unsafe_code)]

use super::tile::{STEP, STRIDE, Target};

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod here {
    pub(crate) fn is_there() -> bool {
        false
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod here {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    use std::sync::OnceLock;

    /// Linux gives a process the tiles' state only when it asks.
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    const SYS_ARCH_PRCTL: u64 = 158;

    pub(crate) fn is_there() -> bool {
        static THERE: OnceLock<bool> = OnceLock::new();
        *THERE.get_or_init(|| has_instructions() && permitted())
    }

    fn has_instructions() -> bool {
        // Leaf 7 says AMX-BF16 in bit 22 and AMX-TILE in bit 24 of edx.
        let bits = 1 << 22 | 1 << 24;
        __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & bits == bits
    }

    fn permitted() -> bool {
        let answer: i64;
        // SAFETY: the call reads and writes no memory of the process; rcx and r11 are what a system call changes.
        unsafe {
            asm!("syscall", inlateout("rax") SYS_ARCH_PRCTL => answer, in("rdi") ARCH_REQ_XCOMP_PERM,
                 in("rsi") XFEATURE_XTILEDATA, out("rcx") _, out("r11") _, options(nostack));
        }
        answer == 0
    }
}

pub(super) use here::is_there;

/// What LDTILECFG reads: palette 1, and rows and bytes of each register.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// `work` with all eight registers as 16 × 64 bytes on this thread, and given back after it.
pub(super) fn configured<T>(work: impl FnOnce() -> T) -> T {
    /// Gives the registers back, so that switches of threads need not save them.
    struct Release;
    impl Drop for Release {
        fn drop(&mut self) {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: made only below, where the instructions are there.
            unsafe {
                std::arch::asm!("tilerelease", options(nostack, preserves_flags));
            }
        }
    }
    assert!(is_there(), "no AMX");
    let mut config = Config {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes: [0; 16],
        rows: [0; 16],
    };
    config.row_bytes[..8].fill(64);
    config.rows[..8].fill(16);
    let _release = Release;
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    // SAFETY: the instruction is there and permitted, and reads the 64 bytes of `config`.
    unsafe {
        std::arch::asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, preserves_flags, readonly));
    }
    work()
}

/// Two by two tiles of a product over `steps` steps of K, inside [`configured`].
///
/// # Safety
/// `rows` and `panel` have `steps` steps; `to` may be read and written.
pub(super) unsafe fn block(rows: &[u16], panel: &[u32], steps: usize, to: &Target) {
    debug_assert!(rows.len() >= steps * STRIDE && panel.len() >= steps * STEP);
    if steps == 0 {
        return;
    }
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    // SAFETY: reads and writes what the caller promises, and nothing else.
    unsafe {
        let out = to.start;
        let out_stride = 4 * to.stride;
        let below = out.byte_add(16 * out_stride);
        match to.add {
            true => std::arch::asm!(
                "tileloadd tmm0, [{c} + {s}]", "tileloadd tmm1, [{c} + {s} + 64]",
                "tileloadd tmm2, [{d} + {s}]", "tileloadd tmm3, [{d} + {s} + 64]",
                c = in(reg) out, d = in(reg) below, s = in(reg) out_stride, options(nostack, preserves_flags)),
            false => std::arch::asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                options(nostack, preserves_flags)
            ),
        }
        std::arch::asm!(
            "2:",
            "tileloadd tmm4, [{a} + {t}]", "tileloadd tmm6, [{p} + {t}]", "tileloadd tmm7, [{p} + {t} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6", "tileloadd tmm5, [{a} + {t} + 1024]", "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 2048", "add {p}, 2048", "dec {n}", "jnz 2b",
            a = inout(reg) rows.as_ptr() => _, p = inout(reg) panel.as_ptr() => _,
            n = inout(reg) steps => _, t = in(reg) 64usize, options(nostack));
        std::arch::asm!(
            "tilestored [{c} + {s}], tmm0", "tilestored [{c} + {s} + 64], tmm1",
            "tilestored [{d} + {s}], tmm2", "tilestored [{d} + {s} + 64], tmm3",
            c = in(reg) out, d = in(reg) below, s = in(reg) out_stride, options(nostack, preserves_flags));
    }
}
