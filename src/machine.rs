//! What the machine is and what the user asked of it: read once, cheap to ask afterwards.
//!
//! | variable | effect |
//! |---|---|
//! | `TILEWISE_ISA=baseline\|avx2\|avx512` | forces an instruction set; one that the processor lacks is an error in every call |
//! | `TILEWISE_VERBOSE=1` | prints a line for each call of an operation to standard error, more where it is made of others |
//!
//! ```
//! println!("{}", tilewise::machine::report());
//! ```
#![forbid(unsafe_code)]

use crate::{Error, Result, parallel};
use std::cell::Cell;
use std::fmt;
use std::io::Write as _;
use std::str::FromStr;
use std::sync::OnceLock;

/// The processor features of an instruction set, handed to another macro. The detection below and the
/// `#[target_feature]` shims of `simd::dispatch` both take them from here.
#[cfg(target_arch = "x86_64")]
macro_rules! with_features {
    (Avx2 $then:ident $($rest:tt)*) => {
        $then! { ["avx2" "fma"] $($rest)* }
    };
    (Avx512 $then:ident $($rest:tt)*) => {
        $then! { ["avx512f" "avx512bw" "avx512dq" "avx512vl" "avx2" "fma"] $($rest)* }
    };
}
#[cfg(target_arch = "x86_64")]
pub(crate) use with_features;

/// A set of vector instructions that kernels are compiled for, in rising order.
///
/// ```
/// use tilewise::machine::Isa;
/// assert_eq!("avx2".parse::<Isa>()?, Isa::Avx2);
/// assert_eq!(Isa::Avx512.to_string(), "avx512");
/// assert!(Isa::Baseline < Isa::Avx2);
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// What the target always has: SSE2 on x86-64, NEON on AArch64, SIMD128 on wasm where enabled.
    Baseline,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL, and [`Avx2`](Isa::Avx2).
    Avx512,
}

impl Isa {
    const ALL: [Isa; 3] = [Isa::Baseline, Isa::Avx2, Isa::Avx512];

    /// The name that `TILEWISE_ISA` takes.
    ///
    /// ```
    /// assert_eq!(tilewise::machine::Isa::Baseline.name(), "baseline");
    /// ```
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Baseline => "baseline",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Isa {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| Error::Isa {
            requested: name.to_string(),
            reason: "unknown; the names are baseline, avx2 and avx512",
        })
    }
}

/// What [`supported`] answers; asked at every dispatch.
static SUPPORTED: OnceLock<&'static [Isa]> = OnceLock::new();

/// The instruction sets this processor has, in rising order, [`Isa::Baseline`] first.
///
/// ```
/// use tilewise::machine::{Isa, supported};
/// assert_eq!(supported()[0], Isa::Baseline);
/// ```
#[inline]
pub fn supported() -> &'static [Isa] {
    SUPPORTED.get_or_init(|| &Isa::ALL[..=best() as usize])
}

#[cfg(target_arch = "x86_64")]
fn best() -> Isa {
    macro_rules! detected {
        ([$($feature:tt)+]) => { $(is_x86_feature_detected!($feature))&&+ };
    }
    if with_features!(Avx512 detected) {
        Isa::Avx512
    } else if with_features!(Avx2 detected) {
        Isa::Avx2
    } else {
        Isa::Baseline
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn best() -> Isa {
    Isa::Baseline
}

thread_local! {
    /// What [`with_isa`] forces on this thread.
    static FORCED: Cell<Option<Isa>> = const { Cell::new(None) };
}

/// The instruction set that calls from this thread run with: the best supported, unless `TILEWISE_ISA`
/// or [`with_isa`] says otherwise.
///
/// ```
/// use tilewise::machine::{isa, supported};
/// assert!(supported().contains(&isa()?));
/// # Ok::<(), tilewise::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Isa`] where `TILEWISE_ISA` names none or one that the processor lacks.
#[inline]
pub fn isa() -> Result<Isa> {
    match FORCED.get() {
        Some(isa) => Ok(isa),
        None => facts().isa.clone(),
    }
}

/// Runs `f`; the library calls that *this thread* makes in it run with `isa`, whatever `TILEWISE_ISA`
/// says. The tasks such a call hands to other threads run with it too. A call that `f` moves to another
/// thread by itself (`pool.install`, `std::thread::spawn`) does not: call `with_isa` there. And where `f`
/// itself waits for rayon (`rayon::join`), jobs of others that run on this thread meanwhile are forced too.
///
/// ```
/// use tilewise::machine::{Isa, isa, with_isa};
/// assert_eq!(with_isa(Isa::Baseline, isa)??, Isa::Baseline);
/// # Ok::<(), tilewise::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Isa`] where the processor lacks it; `f` did not run then.
pub fn with_isa<R>(isa: Isa, f: impl FnOnce() -> R) -> Result<R> {
    let isa = available(isa, supported())?;
    let _restore = Restore(FORCED.replace(Some(isa)));
    Ok(f())
}

/// Puts back what was forced on this thread.
pub(crate) struct Restore(Option<Isa>);

impl Drop for Restore {
    fn drop(&mut self) {
        FORCED.set(self.0);
    }
}

impl Restore {
    /// What was forced before, and will be again.
    pub(crate) fn forced(&self) -> Option<Isa> {
        self.0
    }
}

/// What [`with_isa`] forces on this thread is `isa` until the guard is dropped.
pub(crate) fn force(isa: Option<Isa>) -> Restore {
    Restore(FORCED.replace(isa))
}

fn available(isa: Isa, supported: &[Isa]) -> Result<Isa> {
    if supported.contains(&isa) {
        Ok(isa)
    } else {
        Err(Error::Isa { requested: isa.to_string(), reason: "this processor lacks it" })
    }
}

/// The instruction set for what `TILEWISE_ISA` says, unset and empty meaning the best of `supported`.
fn choose(requested: Option<&str>, supported: &[Isa]) -> Result<Isa> {
    match requested {
        None | Some("") => Ok(supported.last().copied().unwrap_or(Isa::Baseline)),
        Some(name) => available(name.parse()?, supported),
    }
}

/// Sizes of the data caches that one core sees, in bytes.
///
/// ```
/// use tilewise::machine::{Caches, caches};
/// let Caches { l1d, l2, l3 } = caches();
/// assert!(l1d <= l2 && l2 <= l3);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Caches {
    /// First level, data.
    pub l1d: usize,
    /// Second level.
    pub l2: usize,
    /// Third level, shared between cores.
    pub l3: usize,
}

impl Default for Caches {
    /// What is assumed where the system tells nothing: 32 KiB, 512 KiB, 8 MiB.
    fn default() -> Self {
        Caches { l1d: 32 << 10, l2: 512 << 10, l3: 8 << 20 }
    }
}

/// The cache sizes, as the system or the processor tells them.
///
/// ```
/// assert!(tilewise::machine::caches().l1d >= 4 << 10);
/// ```
#[inline]
pub fn caches() -> Caches {
    facts().caches
}

impl Caches {
    /// Bytes of L3 that one call can count on: a larger one belongs to the cores of a whole server.
    #[inline]
    pub(crate) fn share(self) -> usize {
        self.l3.min(32 << 20)
    }

    /// L3 is that of many cores, which share a mesh: it answers after as long as memory does elsewhere, and gives a core a sixth of
    /// what L2 does.
    #[inline]
    pub(crate) fn distant(self) -> bool {
        self.l3 > 96 << 20
    }

    /// From the sizes found by level, the nonsense among them replaced by the defaults.
    fn sane(found: [Option<usize>; 3]) -> Self {
        let default = Caches::default();
        let pick = |size: Option<usize>, least: usize, most: usize, default: usize| {
            size.filter(|size| (least..=most).contains(size)).unwrap_or(default)
        };
        let l1d = pick(found[0], 4 << 10, 4 << 20, default.l1d);
        let l2 = pick(found[1], 32 << 10, 256 << 20, default.l2).max(l1d);
        let l3 = pick(found[2], 256 << 10, 1 << 30, default.l3).max(l2);
        Caches { l1d, l2, l3 }
    }

    /// The processor first: Linux asks it too, and the dozen files it answers with take longer to read than many calls.
    /// Cores of several kinds have caches of several sizes, and there Linux tells those of the same core each time.
    fn read() -> Self {
        let (told, hybrid) = cpuid_caches();
        if !told.contains(&None) && !hybrid {
            return Self::sane(told);
        }
        let mut found = sysfs_caches();
        for (size, told) in found.iter_mut().zip(told) {
            *size = size.or(told);
        }
        Self::sane(found)
    }
}

/// Cache sizes by level from Linux; all absent elsewhere.
fn sysfs_caches() -> [Option<usize>; 3] {
    let mut found = [None; 3];
    if cfg!(target_os = "linux") {
        for index in 0..8 {
            let read = |file: &str| {
                std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{file}"))
            };
            let (Ok(level), Ok(kind), Ok(size)) = (read("level"), read("type"), read("size")) else {
                continue;
            };
            let slot =
                level.trim().parse::<usize>().ok().and_then(|level| found.get_mut(level.wrapping_sub(1)));
            if let (Some(slot), "Data" | "Unified") = (slot, kind.trim()) {
                *slot = parse_size(&size);
            }
        }
    }
    found
}

/// `48K` is 49152.
fn parse_size(text: &str) -> Option<usize> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    digits.parse::<usize>().ok()?.checked_mul(unit)
}

/// Cache sizes by level from the processor itself: leaf 4, or AMD's leaf of the same format. And whether its cores are
/// of several kinds. Each question may cost microseconds, where a hypervisor answers.
#[cfg(target_arch = "x86_64")]
fn cpuid_caches() -> ([Option<usize>; 3], bool) {
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    let last = __cpuid(0).eax;
    let leaves: [(&dyn Fn() -> u32, u32); 2] = [(&|| last, 4), (&|| __cpuid(0x8000_0000).eax, 0x8000_001D)];
    let mut found = [None; 3];
    for (last, leaf) in leaves {
        if found != [None; 3] || last() < leaf {
            continue;
        }
        for index in 0..8 {
            let told = __cpuid_count(leaf, index);
            let (kind, level) = (told.eax & 31, (told.eax >> 5) as usize & 7);
            let (line, parts, ways) = (told.ebx & 0xFFF, told.ebx >> 12 & 0x3FF, told.ebx >> 22);
            let size = [line, parts, ways, told.ecx]
                .iter()
                .try_fold(1usize, |size, &minus_one| size.checked_mul(minus_one as usize + 1));
            match kind {
                0 => break,
                1 | 3 if (1..=3).contains(&level) => found[level - 1] = size,
                _ => {}
            }
            if !found.contains(&None) {
                break;
            }
        }
    }
    (found, last >= 7 && __cpuid_count(7, 0).edx >> 15 & 1 == 1)
}

#[cfg(not(target_arch = "x86_64"))]
fn cpuid_caches() -> ([Option<usize>; 3], bool) {
    ([None; 3], false)
}

/// True where `TILEWISE_VERBOSE=1`: operations say to standard error what they do.
///
/// ```
/// if tilewise::machine::verbose() {
///     eprintln!("{}", tilewise::machine::report());
/// }
/// ```
#[inline]
pub fn verbose() -> bool {
    facts().verbose
}

/// Prints a line to standard error where the user asked for them.
#[inline]
pub(crate) fn trace(line: impl FnOnce() -> String) {
    if verbose() {
        // Not `eprintln!`, which panics where stderr is closed.
        let _ = writeln!(std::io::stderr(), "{}", line());
    }
}

/// Everything that is read once, but for [`SUPPORTED`].
struct Facts {
    requested: Option<String>,
    isa: Result<Isa>,
    verbose: bool,
    caches: Caches,
}

/// Asked several times in each call.
#[inline(always)]
fn facts() -> &'static Facts {
    static FACTS: OnceLock<Facts> = OnceLock::new();
    FACTS.get().unwrap_or_else(|| found(&FACTS))
}

#[cold]
fn found(facts: &OnceLock<Facts>) -> &Facts {
    // Nothing here may call rayon: a task of another call stolen meanwhile could ask for the facts too.
    facts.get_or_init(|| {
        let variable = |name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        let requested = variable("TILEWISE_ISA");
        Facts {
            isa: choose(requested.as_deref(), supported()),
            requested,
            verbose: variable("TILEWISE_VERBOSE").as_deref() == Some("1"),
            caches: Caches::read(),
        }
    })
}

/// What [`report`] found. Its `Display` is a few aligned lines.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// What [`isa`] answers.
    pub isa: Result<Isa>,
    /// Why it is this one.
    pub why: &'static str,
    /// What [`supported`] answers.
    pub supported: &'static [Isa],
    /// What [`caches`] answers.
    pub caches: Caches,
    /// Threads of rayon's current pool.
    pub threads: usize,
    /// The value of `TILEWISE_ISA`.
    pub requested: Option<String>,
    /// What [`verbose`] answers.
    pub verbose: bool,
}

/// The facts in one place, for the head of a benchmark or a bug report.
///
/// ```
/// let report = tilewise::machine::report();
/// assert!(report.threads >= 1);
/// assert!(report.to_string().contains("supported"));
/// ```
pub fn report() -> Report {
    let facts = facts();
    let why = match (FORCED.get(), facts.requested.as_deref()) {
        (Some(_), _) => "forced by with_isa",
        (None, None | Some("")) => "the best supported",
        (None, Some(_)) => "asked for by TILEWISE_ISA",
    };
    Report {
        isa: isa(),
        why,
        supported: supported(),
        caches: facts.caches,
        threads: parallel::pool(),
        requested: facts.requested.clone(),
        verbose: facts.verbose,
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.isa {
            Ok(isa) => writeln!(f, "isa        {isa} ({})", self.why)?,
            Err(error) => writeln!(f, "isa        none ({error})")?,
        }
        let supported: Vec<_> = self.supported.iter().map(|isa| isa.name()).collect();
        writeln!(f, "supported  {}", supported.join(", "))?;
        let Caches { l1d, l2, l3 } = self.caches;
        writeln!(f, "caches     L1d {} KiB, L2 {} KiB, L3 {} KiB", l1d >> 10, l2 >> 10, l3 >> 10)?;
        writeln!(f, "threads    {}", self.threads)?;
        let requested = self.requested.as_deref().unwrap_or("unset");
        write!(f, "overrides  TILEWISE_ISA {requested}, TILEWISE_VERBOSE {}", u8::from(self.verbose))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_AVX512: &[Isa] = &[Isa::Baseline, Isa::Avx2];

    #[test]
    fn the_best_is_chosen_unless_asked() {
        assert_eq!(choose(None, &Isa::ALL), Ok(Isa::Avx512));
        assert_eq!(choose(Some(""), NO_AVX512), Ok(Isa::Avx2));
        assert_eq!(choose(None, &[Isa::Baseline]), Ok(Isa::Baseline));
        for isa in NO_AVX512 {
            assert_eq!(choose(Some(isa.name()), NO_AVX512), Ok(*isa));
        }
    }

    #[test]
    fn a_missing_or_unknown_set_is_an_error() {
        let error = choose(Some("avx512"), NO_AVX512).unwrap_err();
        assert_eq!(error.to_string(), "instruction set avx512: this processor lacks it");
        for name in ["AVX2", "avx2 ", "sse", "avx-512"] {
            let error = choose(Some(name), &Isa::ALL).unwrap_err();
            assert!(matches!(&error, Error::Isa { requested, .. } if requested == name), "{error}");
        }
    }

    #[test]
    fn names_are_parsed_back() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse(), Ok(isa));
        }
        assert_eq!(format!("{:>8}", Isa::Avx2), "    avx2");
    }

    #[test]
    fn forcing_nests_and_ends() {
        let before = isa();
        let best = *supported().last().unwrap();
        with_isa(Isa::Baseline, || {
            assert_eq!(isa(), Ok(Isa::Baseline));
            with_isa(best, || assert_eq!(isa(), Ok(best))).unwrap();
            assert_eq!(isa(), Ok(Isa::Baseline));
            assert_eq!(report().why, "forced by with_isa");
            std::thread::spawn(isa).join().map(|there| assert_eq!(there, facts().isa)).unwrap();
        })
        .unwrap();
        assert_eq!(isa(), before);
    }

    #[test]
    fn forcing_ends_where_the_closure_unwinds() {
        let before = isa();
        std::panic::catch_unwind(|| with_isa(Isa::Baseline, || panic!("on purpose"))).unwrap_err();
        assert_eq!(isa(), before);
    }

    #[test]
    fn forcing_a_missing_set_runs_nothing() {
        for missing in Isa::ALL.into_iter().filter(|isa| !supported().contains(isa)) {
            let mut ran = false;
            assert!(matches!(with_isa(missing, || ran = true), Err(Error::Isa { .. })));
            assert!(!ran);
        }
    }

    #[test]
    fn sizes_are_parsed() {
        assert_eq!(parse_size("48K\n"), Some(48 << 10));
        assert_eq!(parse_size("2M"), Some(2 << 20));
        assert_eq!(parse_size("512"), Some(512));
        for nonsense in ["", "K", "12Q", "-1K", "99999999999999999999K", "18446744073709551615K"] {
            assert_eq!(parse_size(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn nonsense_sizes_are_replaced() {
        let default = Caches::default();
        assert_eq!(Caches::sane([None; 3]), default);
        assert_eq!(Caches::sane([Some(0); 3]), default);
        assert_eq!(Caches::sane([Some(usize::MAX); 3]), default);
        let good = Caches { l1d: 48 << 10, l2: 2 << 20, l3: 260 << 20 };
        assert_eq!(Caches::sane([Some(good.l1d), Some(good.l2), Some(good.l3)]), good);
        // A machine without a third level: no smaller than the second.
        assert_eq!(Caches::sane([None, Some(16 << 20), None]).l3, 16 << 20);
    }

    #[test]
    fn the_processor_tells_something_or_nothing() {
        let Caches { l1d, l2, l3 } = Caches::sane(cpuid_caches().0);
        assert!(l1d <= l2 && l2 <= l3, "{l1d} {l2} {l3}");
    }

    #[test]
    fn the_processor_and_the_system_agree() {
        let ((told, hybrid), found) = (cpuid_caches(), sysfs_caches());
        for (told, found) in told.into_iter().zip(found) {
            if let (Some(told), Some(found), false) = (told, found, hybrid) {
                assert_eq!(told, found);
            }
        }
    }

    #[test]
    fn the_report_is_aligned() {
        let report = Report {
            isa: Ok(Isa::Avx2),
            why: "the best supported",
            supported: NO_AVX512,
            caches: Caches::default(),
            threads: 2,
            requested: None,
            verbose: true,
        };
        let lines = "\
isa        avx2 (the best supported)
supported  baseline, avx2
caches     L1d 32 KiB, L2 512 KiB, L3 8192 KiB
threads    2
overrides  TILEWISE_ISA unset, TILEWISE_VERBOSE 1";
        assert_eq!(report.to_string(), lines);
    }
}
