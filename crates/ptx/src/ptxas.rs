//! NVIDIA's assembler, where it is installed: for tests and tables. Running a kernel needs the driver alone.
use crate::target::Target;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

/// The program `ptxas`.
///
/// ```
/// use signflash_ptx::{Builder, Ptxas, LaunchBounds, Target};
/// let kernel = Builder::build("nothing", LaunchBounds { block_threads: 64, min_blocks_per_sm: 1 }, |_| {});
/// if let Some(ptxas) = Ptxas::find() {
///     assert_eq!(ptxas.assemble(&kernel.ptx(), Target::Sm80)?.spill_store_bytes, 0);
/// }
/// # Ok::<(), signflash_ptx::PtxasError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ptxas {
    path: PathBuf,
}

/// What ptxas made of a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Registers a thread.
    pub registers: u32,
    /// Bytes a thread that are written to local memory for want of registers.
    pub spill_store_bytes: u32,
    /// Bytes read back.
    pub spill_load_bytes: u32,
    /// Bytes of stack a thread.
    pub stack_bytes: u32,
    /// All that it said.
    pub log: String,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PtxasError {
    /// ptxas refused the text.
    #[error("ptxas refused the kernel:\n{log}")]
    Refused {
        /// What it said.
        log: String,
    },
    /// ptxas could not be run.
    #[error("running {path} failed: {source}", path = path.display())]
    Run {
        /// The program.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl Ptxas {
    /// The one that `SIGNFLASH_PTXAS` names, or on the path, or in the Python package `nvidia-cuda-nvcc`.
    pub fn find() -> Option<Ptxas> {
        let named = env::var_os("SIGNFLASH_PTXAS").map(PathBuf::from);
        let on_path = env::var_os("PATH").into_iter().flat_map(|path| {
            env::split_paths(&path).map(|directory| directory.join("ptxas")).collect::<Vec<_>>()
        });
        let found = named.into_iter().chain(on_path).find(|path| path.is_file());
        found.or_else(in_python).map(|path| Ptxas { path })
    }

    /// The program.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its version, in its own words.
    pub fn version(&self) -> String {
        let output = Command::new(&self.path).arg("--version").output();
        let text =
            output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        text.lines().find(|line| line.contains("release")).unwrap_or("unknown").trim().to_owned()
    }

    /// Compiles one kernel for a GPU.
    ///
    /// # Errors
    /// [`PtxasError`].
    pub fn assemble(&self, ptx: &str, target: Target) -> Result<Report, PtxasError> {
        let failed = |source| PtxasError::Run { path: self.path.clone(), source };
        // A name for each process and thread: many may assemble at once.
        let digits = |id: String| id.chars().filter(char::is_ascii_digit).collect::<String>();
        let thread = digits(format!("{:?}", std::thread::current().id()));
        let file = env::temp_dir().join(format!("signflash-ptxas-{}-{thread}", std::process::id()));
        let (source, cubin) = (file.with_extension("ptx"), file.with_extension("cubin"));
        fs::write(&source, ptx).map_err(failed)?;
        let run = Command::new(&self.path)
            .arg("-v")
            .arg(format!("-arch={target}"))
            .arg(&source)
            .arg("-o")
            .arg(&cubin)
            .output();
        // What is left behind in a temporary directory harms nobody.
        let _ = (fs::remove_file(&source), fs::remove_file(&cubin));
        let output = run.map_err(failed)?;
        let log =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        if output.status.success() { Ok(Report::read(log)) } else { Err(PtxasError::Refused { log }) }
    }
}

/// In the packages of the Python that is on the path.
fn in_python() -> Option<PathBuf> {
    let list = "import sysconfig; print(sysconfig.get_path('purelib'))";
    let output = Command::new("python3").args(["-c", list]).output().ok()?;
    let packages = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    ["nvidia/cu13/bin/ptxas", "nvidia/cuda_nvcc/bin/ptxas"]
        .map(|path| packages.join(path))
        .into_iter()
        .find(|p| p.is_file())
}

impl Report {
    /// What a log says, which `ptxas -v` has written about one kernel.
    ///
    /// ```
    /// use signflash_ptx::Report;
    /// let log = "ptxas info    : Compiling entry function 'k' for 'sm_90'\n\
    ///            16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads\n\
    ///            ptxas info    : Used 255 registers, used 1 barriers\n";
    /// let report = Report::read(log.to_owned());
    /// let Report { registers, stack_bytes, spill_store_bytes, spill_load_bytes, .. } = report;
    /// assert_eq!([registers, stack_bytes, spill_store_bytes, spill_load_bytes], [255, 16, 12, 8]);
    /// assert_eq!(report.log, log);
    /// ```
    pub fn read(log: String) -> Report {
        let before = |words: &str| {
            let (head, _) = log.split_once(words)?;
            head.rsplit(|c: char| !c.is_ascii_digit()).find(|word| !word.is_empty())?.parse().ok()
        };
        let numbers = [" registers", " bytes spill stores", " bytes spill loads", " bytes stack frame"];
        let [registers, spill_store_bytes, spill_load_bytes, stack_bytes] =
            numbers.map(|words| before(words).unwrap_or(0));
        Report { registers, spill_store_bytes, spill_load_bytes, stack_bytes, log }
    }
}
