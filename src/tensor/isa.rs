//! One generic body, compiled for each instruction set, chosen at run time.
//!
//! Without FMA in the instruction set `f32::mul_add` is a library call: right, and some forty
//! times slower. So the body must be inlined whole into functions that declare the feature.
#![allow(unsafe_code)]

/// An instruction set that the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    /// What the target guarantees: on aarch64 that includes FMA, on x86-64 it does not.
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// Work that is compiled once for each instruction set.
pub(crate) trait Kernel {
    type Out;
    /// `WIDTH` is how many columns of a tile's rows the registers hold: 16 or 32. Implementations
    /// are `#[inline(always)]`, as is all they call in a loop.
    fn run<const WIDTH: usize>(self) -> Self::Out;
}

impl Isa {
    /// The best this processor has; the standard library caches what it asks the processor.
    pub(crate) fn detect() -> Self {
        Self::available().last().copied().unwrap_or(Self::Portable)
    }

    /// All that this processor has, ascending.
    pub(crate) fn available() -> &'static [Self] {
        #[cfg(target_arch = "x86_64")]
        {
            const ALL: [Isa; 3] = [Isa::Portable, Isa::Avx2, Isa::Avx512];
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("popcnt");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            &ALL[..1 + usize::from(avx2) + usize::from(avx2 && avx512)]
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            &[Self::Portable]
        }
    }

    /// Runs `kernel`, compiled for this instruction set where the processor has it.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Out {
        let isa = if Self::available().contains(&self) {
            self
        } else {
            Self::Portable
        };
        match isa {
            Self::Portable => kernel.run::<16>(),
            // SAFETY: `available` lists it only where the processor has all that `avx2` enables.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { avx2(kernel) },
            // SAFETY: `available` lists it only where the processor has all that `avx512` enables.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { avx512(kernel) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,popcnt")]
fn avx2<K: Kernel>(kernel: K) -> K::Out {
    kernel.run::<16>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512<K: Kernel>(kernel: K) -> K::Out {
    kernel.run::<32>()
}
