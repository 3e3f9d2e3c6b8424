//! Libraries with the C interface of BLAS, loaded while the program runs and only where they are found:
//! OpenBLAS, and MKL, which also packs B before where that is allowed.

use std::ffi::{CStr, c_char, c_int};

use libloading::Library;
use libloading::os::unix::{Library as UnixLibrary, RTLD_LOCAL, RTLD_NOW};
use rayon::prelude::*;

use super::{Peer, Product, product};
use crate::problem::{Buffer, Matrix, Problem};
use crate::workload::Workload;

const ROW_MAJOR: c_int = 101;
const PLAIN: c_int = 111;
const TRANSPOSED: c_int = 112;
const UPPER: c_int = 121;
const PACKED: c_int = 151;
const B_MATRIX: c_int = 162;

type Gemm<T> = unsafe extern "C" fn(
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    T,
    *const T,
    c_int,
    *const T,
    c_int,
    T,
    *mut T,
    c_int,
);
type Syrk<T> = unsafe extern "C" fn(c_int, c_int, c_int, c_int, c_int, T, *const T, c_int, T, *mut T, c_int);
type GemmBatch<T> = unsafe extern "C" fn(
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    T,
    *const T,
    c_int,
    c_int,
    *const T,
    c_int,
    c_int,
    T,
    *mut T,
    c_int,
    c_int,
    c_int,
);
type PackSize = unsafe extern "C" fn(c_int, c_int, c_int, c_int) -> usize;
type Pack<T> = unsafe extern "C" fn(c_int, c_int, c_int, c_int, c_int, c_int, T, *const T, c_int, *mut T);
type GemmPacked<T> = unsafe extern "C" fn(
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    *const T,
    c_int,
    *const T,
    c_int,
    T,
    *mut T,
    c_int,
);
type SetThreads = unsafe extern "C" fn(c_int);

/// What only MKL has.
struct Extensions<T> {
    batch: GemmBatch<T>,
    pack_size: PackSize,
    pack: Pack<T>,
    packed: GemmPacked<T>,
}

/// The functions of one element type.
struct Functions<T> {
    gemm: Gemm<T>,
    syrk: Syrk<T>,
    extensions: Option<Extensions<T>>,
}

pub struct Blas {
    name: &'static str,
    about: String,
    threads: usize,
    set_threads: SetThreads,
    f32: Functions<f32>,
    f64: Functions<f64>,
}

/// Those that are on this machine, set to this number of threads.
pub fn found(threads: usize) -> Vec<Blas> {
    let openblas = load("PEERS_OPENBLAS", &["libopenblas.so.0", "libopenblas.so"])
        .and_then(|library| openblas(library, threads).ok());
    let mkl = load("PEERS_MKL", &["libmkl_rt.so", "libmkl_rt.so.3", "libmkl_rt.so.2"])
        .and_then(|library| mkl(library, threads).ok());
    openblas.into_iter().chain(mkl).collect()
}

/// The library named by a variable, or the first of these names that there is. It is never unloaded, as its
/// threads may outlive any owner.
fn load(variable: &str, names: &[&str]) -> Option<&'static Library> {
    let open = |name: &str| {
        // SAFETY: loading runs the initialisation of a library that the user chose to compare with. Local
        // and bound at once, so that neither library calls the other's functions of the same name.
        let library = unsafe { UnixLibrary::open(Some(name), RTLD_NOW | RTLD_LOCAL) }.ok()?;
        Some(&*Box::leak(Box::new(Library::from(library))))
    };
    match std::env::var(variable) {
        Ok(path) => open(&path),
        Err(_) => names.iter().find_map(|name| open(name)),
    }
}

/// A function of the library.
///
/// # Safety
/// `F` must be the function's type.
unsafe fn function<F: Copy>(library: &'static Library, name: &str) -> Result<F, libloading::Error> {
    // SAFETY: the caller's promise.
    unsafe { library.get::<F>(name) }.map(|symbol| *symbol)
}

/// # Safety
/// The library must have the C interface of BLAS for `T` with this prefix, integers being 32 bits wide.
unsafe fn functions<T: Copy>(
    library: &'static Library,
    prefix: &str,
    extended: bool,
) -> Result<Functions<T>, libloading::Error> {
    let name = |name: &str| format!("cblas_{prefix}{name}");
    // SAFETY: the types are those of the reference implementation's and MKL's headers.
    unsafe {
        let extensions = match extended {
            true => Some(Extensions {
                batch: function(library, &name("gemm_batch_strided"))?,
                pack_size: function(library, &name("gemm_pack_get_size"))?,
                pack: function(library, &name("gemm_pack"))?,
                packed: function(library, &name("gemm_compute"))?,
            }),
            false => None,
        };
        Ok(Functions {
            gemm: function(library, &name("gemm"))?,
            syrk: function(library, &name("syrk"))?,
            extensions,
        })
    }
}

fn openblas(library: &'static Library, threads: usize) -> Result<Blas, libloading::Error> {
    // SAFETY: the types are those of OpenBLAS's header; both strings are static there.
    unsafe {
        let text = |name| -> Result<String, libloading::Error> {
            let text: unsafe extern "C" fn() -> *const c_char = function(library, name)?;
            Ok(CStr::from_ptr(text()).to_string_lossy().into_owned())
        };
        let config = text("openblas_get_config")?;
        let version = config.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
        let set_threads: SetThreads = function(library, "openblas_set_num_threads")?;
        set_threads(threads as c_int);
        Ok(Blas {
            name: "openblas",
            about: format!("{version}, core {}", text("openblas_get_corename")?),
            threads,
            set_threads,
            f32: functions(library, "s", false)?,
            f64: functions(library, "d", false)?,
        })
    }
}

fn mkl(library: &'static Library, threads: usize) -> Result<Blas, libloading::Error> {
    // SAFETY: the types are those of MKL's header; the version is cut to the length given and ends with 0.
    unsafe {
        let version: unsafe extern "C" fn(*mut c_char, c_int) = function(library, "MKL_Get_Version_String")?;
        let mut text = [0; 200];
        version(text.as_mut_ptr(), text.len() as c_int - 1);
        let text = CStr::from_ptr(text.as_ptr()).to_string_lossy().trim().to_owned();
        let set_threads: SetThreads = function(library, "MKL_Set_Num_Threads")?;
        set_threads(threads as c_int);
        Ok(Blas {
            name: "mkl",
            about: version_in(&text),
            threads,
            set_threads,
            f32: functions(library, "s", true)?,
            f64: functions(library, "d", true)?,
        })
    }
}

/// The version in MKL's sentence about itself.
fn version_in(text: &str) -> String {
    let mut words = text.split_whitespace().skip_while(|word| *word != "Version").skip(1);
    words.next().map_or_else(|| text.to_owned(), |version| format!("MKL {version}"))
}

/// How BLAS is told of a matrix: transposed or not, and elements from one stored row to the next.
fn described<T>(matrix: Matrix<'_, T>) -> (c_int, c_int) {
    let transposed = if matrix.transposed { TRANSPOSED } else { PLAIN };
    (transposed, matrix.stored()[1] as c_int)
}

/// Sizes as BLAS takes them, once the slices have been found to fill them.
fn sizes<T>(a: Matrix<'_, T>, b: Matrix<'_, T>, c: &[T], batch: usize) -> [c_int; 3] {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert!(
        a.data.len() == batch * m * k && b.data.len() == batch * k * n && c.len() == batch * m * n,
        "slices fill the matrices"
    );
    [m, n, k].map(|size| c_int::try_from(size).expect("a size that BLAS can take"))
}

macro_rules! peer {
    ($T:ty, $functions:ident) => {
        impl Functions<$T> {
            fn gemm(&self, a: Matrix<'_, $T>, b: Matrix<'_, $T>, c: &mut [$T]) {
                let [m, n, k] = sizes(a, b, c, 1);
                let ((trans_a, lda), (trans_b, ldb)) = (described(a), described(b));
                let (a, b, c) = (a.data.as_ptr(), b.data.as_ptr(), c.as_mut_ptr());
                // SAFETY: the slices fill the matrices, and rows lie one after the other.
                unsafe { (self.gemm)(ROW_MAJOR, trans_a, trans_b, m, n, k, 1.0, a, lda, b, ldb, 0.0, c, n) };
            }

            fn syrk(&self, a: Matrix<'_, $T>, c: &mut [$T]) {
                let (n, k) = (a.rows as c_int, a.columns as c_int);
                assert!(!a.transposed && a.data.len() == a.len() && c.len() == a.rows * a.rows);
                let (a, c) = (a.data.as_ptr(), c.as_mut_ptr());
                // SAFETY: the slices fill the matrices, as asserted.
                unsafe { (self.syrk)(ROW_MAJOR, UPPER, PLAIN, n, k, 1.0, a, k, 0.0, c, n) };
            }
        }

        impl Extensions<$T> {
            fn batch(&self, a: Matrix<'_, $T>, b: Matrix<'_, $T>, c: &mut [$T], batch: usize) {
                let [m, n, k] = sizes(a, b, c, batch);
                let ((trans_a, lda), (trans_b, ldb)) = (described(a), described(b));
                let (a, b, c) = (a.data.as_ptr(), b.data.as_ptr(), c.as_mut_ptr());
                let (step_a, step_b, step_c) = (m * k, k * n, m * n);
                // SAFETY: the slices fill so many matrices, which lie one after the other.
                unsafe {
                    (self.batch)(
                        ROW_MAJOR,
                        trans_a,
                        trans_b,
                        m,
                        n,
                        k,
                        1.0,
                        a,
                        lda,
                        step_a,
                        b,
                        ldb,
                        step_b,
                        0.0,
                        c,
                        n,
                        step_c,
                        batch as c_int,
                    )
                };
            }

            fn pack(&self, m: usize, b: Matrix<'_, $T>) -> Buffer<$T> {
                assert!(b.data.len() == b.len());
                let (m, n, k) = (m as c_int, b.columns as c_int, b.rows as c_int);
                let (trans_b, ldb) = described(b);
                // SAFETY: no memory is touched.
                let bytes = unsafe { (self.pack_size)(B_MATRIX, m, n, k) };
                let mut packed =
                    Buffer::<$T>::from_iter(64, (0..bytes.div_ceil(size_of::<$T>())).map(|_| 0.0));
                let (b, to) = (b.data.as_ptr(), packed.as_mut_ptr());
                // SAFETY: the slice fills the matrix, and MKL told how much room it takes when packed.
                unsafe { (self.pack)(ROW_MAJOR, B_MATRIX, trans_b, m, n, k, 1.0, b, ldb, to) };
                packed
            }

            fn packed(&self, a: Matrix<'_, $T>, b: Matrix<'_, $T>, packed: &[$T], c: &mut [$T]) {
                let [m, n, k] = sizes(a, b, c, 1);
                let ((trans_a, lda), (_, ldb)) = (described(a), described(b));
                let (a, b, c) = (a.data.as_ptr(), packed.as_ptr(), c.as_mut_ptr());
                // SAFETY: the slices fill the matrices; `packed` comes from `pack` with the same sizes.
                unsafe { (self.packed)(ROW_MAJOR, trans_a, PACKED, m, n, k, a, lda, b, ldb, 0.0, c, n) };
            }
        }

        impl Peer<$T> for Blas {
            fn name(&self) -> &'static str {
                self.name
            }

            fn about(&self) -> String {
                self.about.clone()
            }

            fn prepare<'p>(&'p self, problem: &'p Problem<$T>) -> Option<Box<dyn Product<$T> + 'p>> {
                let Workload { batch, gram, prepacked, .. } = problem.workload;
                let (functions, a, b) = (&self.$functions, problem.a(), problem.b());
                match &functions.extensions {
                    _ if gram => Some(Box::new(Triangle {
                        size: a.rows,
                        run: move |c: &mut [$T]| functions.syrk(a, c),
                    })),
                    Some(extensions) if batch > 1 => {
                        product(move |c: &mut [$T]| extensions.batch(a, b, c, batch))
                    }
                    Some(extensions) if prepacked => {
                        let packed = extensions.pack(a.rows, b);
                        product(move |c: &mut [$T]| extensions.packed(a, b, &packed, c))
                    }
                    None if batch > 1 => product(move |c: &mut [$T]| {
                        self.each(c, a.rows * b.columns, &|i, c| functions.gemm(a.entry(i), b.entry(i), c))
                    }),
                    _ => product(move |c: &mut [$T]| functions.gemm(a, b, c)),
                }
            }
        }
    };
}

peer!(f32, f32);
peer!(f64, f64);

impl Blas {
    /// Entries of a batch as tasks of one thread each: the library's own threads bring small products nothing.
    fn each<T: Send>(&self, c: &mut [T], len: usize, multiply: &(dyn Fn(usize, &mut [T]) + Sync)) {
        // SAFETY: no product of this library is running.
        unsafe { (self.set_threads)(1) };
        c.par_chunks_mut(len).enumerate().for_each(|(i, c)| multiply(i, c));
        // SAFETY: as above.
        unsafe { (self.set_threads)(self.threads as c_int) };
    }
}

/// A symmetric result of which the library computes the upper triangle only.
struct Triangle<F> {
    size: usize,
    run: F,
}

impl<T: Copy, F: FnMut(&mut [T])> Product<T> for Triangle<F> {
    fn run(&mut self, c: &mut [T]) {
        (self.run)(c);
    }

    fn complete(&mut self, c: &mut [T]) {
        for i in 0..self.size {
            for j in 0..i {
                c[i * self.size + j] = c[j * self.size + i];
            }
        }
    }
}
