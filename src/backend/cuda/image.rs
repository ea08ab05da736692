//! The image of the kernels, and what its manifest says of each of them.
//!
//! Machine code for all architectures and PTX for those to come, made by `tools/build-kernels` and committed, so that
//! nobody needs a compiler (`kernels/README.md`). Knows nothing of shapes.

use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// The fatbin, as `cuModuleLoadData` takes it. A program that never asks for it does not contain it.
pub fn fatbin() -> &'static [u8] {
    include_bytes!(env!("BERTHIER_FATBIN"))
}

/// `kernels/prebuilt/manifest.json`, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// SHA-256 of the sources that the image was made of, as `tools/kernels/sources.py` defines it.
    pub sources_sha256: String,
    /// SHA-256 of the image.
    pub image_sha256: String,
    /// Bytes of the image.
    pub image_bytes: usize,
    /// The compiler's release and build.
    pub compiler: String,
    /// The compiler's flags.
    pub flags: Vec<String>,
    /// Architectures with machine code in the image: `sm_80`, …
    pub architectures: Vec<String>,
    /// Kernels by their symbol.
    pub kernels: BTreeMap<String, Kernel>,
}

/// One kernel of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Threads of a block.
    pub threads: usize,
    /// Bytes of dynamic shared memory; the most of them where the launch decides.
    pub dynamic_shared: usize,
    /// What it takes, by architecture.
    pub usage: BTreeMap<String, Usage>,
}

/// What a kernel takes on one architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Registers of a thread.
    pub registers: usize,
    /// Bytes of static shared memory.
    pub static_shared: usize,
    /// Bytes of stack and local memory, and of spills: 0.
    pub local: usize,
}

impl Manifest {
    /// The manifest of [`fatbin`]; with `NVCC`, that of the committed image.
    ///
    /// # Panics
    /// Never: a test reads it.
    pub fn get() -> &'static Self {
        static MANIFEST: OnceLock<Manifest> = OnceLock::new();
        MANIFEST.get_or_init(|| {
            Self::parse(include_str!("../../../kernels/prebuilt/manifest.json")).unwrap_or_else(|what| {
                panic!("the manifest of the kernels has no {what}; it comes with the source")
            })
        })
    }

    /// The architecture whose machine code a GPU of this compute capability runs; of a newer GPU, which compiles the PTX,
    /// the newest: its registers are the best guess.
    pub fn architecture(&self, compute_capability: (u32, u32)) -> &str {
        let wanted = compute_capability.0 * 10 + compute_capability.1;
        let number = |name: &str| name.trim_start_matches("sm_").trim_end_matches(['a', 'f']).parse::<u32>();
        let mut of_major = self
            .architectures
            .iter()
            .filter(|name| number(name).is_ok_and(|n| n / 10 == compute_capability.0 && n <= wanted));
        of_major.next_back().or(self.architectures.last()).map_or("", |name| name)
    }

    /// Whether kernels may begin before the one before has ended: the image has machine code for a GPU of this compute
    /// capability that waits for it. PTX of compute_80, which others compile, does not.
    pub fn waits_for_predecessor(&self, compute_capability: (u32, u32)) -> bool {
        let architecture =
            self.architecture(compute_capability).trim_start_matches("sm_").trim_end_matches(['a', 'f']);
        compute_capability.0 >= 9 && architecture.parse::<u32>().is_ok_and(|n| n / 10 == compute_capability.0)
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        let json: Value = serde_json::from_str(text).map_err(|_| "JSON")?;
        let image = json.pointer("/images/berthier.fatbin").ok_or("image")?;
        let string = |value: &Value, key: &'static str| {
            value.get(key).and_then(Value::as_str).map(str::to_owned).ok_or(key)
        };
        let list = |key: &'static str| -> Result<Vec<String>, &'static str> {
            let items = json.get(key).and_then(Value::as_array).ok_or(key)?;
            items.iter().map(|item| item.as_str().map(str::to_owned).ok_or(key)).collect()
        };
        let architectures = list("architectures")?;
        let mut kernels = BTreeMap::new();
        for (name, entry) in image.get("kernels").and_then(Value::as_object).ok_or("kernels")? {
            kernels.insert(name.clone(), Kernel::parse(entry, &architectures)?);
        }
        Ok(Self {
            sources_sha256: string(&json, "sources_sha256")?,
            image_sha256: string(image, "sha256")?,
            image_bytes: number(image.get("bytes")).ok_or("bytes")?,
            compiler: string(json.get("compiler").ok_or("compiler")?, "nvcc")?,
            flags: list("flags")?,
            architectures,
            kernels,
        })
    }
}

impl Kernel {
    /// What it takes on an architecture of [`Manifest::architectures`].
    pub fn on(&self, architecture: &str) -> Option<Usage> {
        self.usage.get(architecture).copied()
    }

    fn parse(entry: &Value, architectures: &[String]) -> Result<Self, &'static str> {
        let mut usage = BTreeMap::new();
        for name in architectures {
            // registers, static_shared, stack, local, spills
            let Some(columns) = entry.get(name).and_then(Value::as_array) else { continue };
            let columns: Vec<usize> = columns.iter().filter_map(|v| number(Some(v))).collect();
            let [registers, static_shared, stack, local, spills] = columns[..] else { return Err("columns") };
            usage.insert(name.clone(), Usage { registers, static_shared, local: stack + local + spills });
        }
        Ok(Self {
            threads: number(entry.get("threads")).ok_or("threads")?,
            dynamic_shared: number(entry.get("dynamic_shared")).ok_or("dynamic_shared")?,
            usage,
        })
    }
}

fn number(value: Option<&Value>) -> Option<usize> {
    value?.as_u64().and_then(|n| n.try_into().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_runs_the_newest_code_of_its_major_revision_that_is_not_newer() {
        let manifest = Manifest::get();
        for (capability, name) in [
            ((8, 0), "sm_80"),
            ((8, 6), "sm_86"),
            ((8, 9), "sm_86"),
            ((9, 0), "sm_90a"),
            ((10, 0), "sm_100"),
            ((10, 3), "sm_100"),
            ((12, 0), "sm_120"),
            ((12, 1), "sm_120"),
            ((13, 0), "sm_120"),
        ] {
            assert_eq!(manifest.architecture(capability), name, "{capability:?}");
        }
    }

    #[test]
    fn only_machine_code_from_sm_90_on_waits_for_its_predecessor() {
        let waits = |capability| Manifest::get().waits_for_predecessor(capability);
        assert!([(9, 0), (10, 0), (10, 3), (12, 0), (12, 1)].into_iter().all(waits));
        // 11.0 and what is newer than this compiler run PTX of compute_80
        assert!(![(8, 0), (8, 6), (8, 9), (11, 0), (13, 0)].into_iter().any(waits));
    }

    #[test]
    fn manifest_rejects_what_is_missing() {
        let text = include_str!("../../../kernels/prebuilt/manifest.json");
        assert!(Manifest::parse(text).is_ok());
        assert_eq!(Manifest::parse("{"), Err("JSON"));
        assert_eq!(Manifest::parse(&text.replace("\"sources_sha256\"", "\"x\"")), Err("sources_sha256"));
        assert_eq!(Manifest::parse(&text.replace("berthier.fatbin", "x")), Err("image"));
    }
}
