//! The suite of named cases on a GPU. Without one the tests pass and say so; `SIGNFLASH_REQUIRE_GPU=1` makes that a
//! failure.

#[path = "device/gpu.rs"]
mod gpu;

use signflash_core::suite::{Implementation, RunError};
use signflash_core::{Dtype, Element, GradInputs, Gradients, Inputs, Outputs, Problem};
use signflash_cuda::{CudaEngine, check_features};
use std::sync::OnceLock;

/// One engine for all tests, so that each kernel is compiled once.
fn engine() -> Option<&'static CudaEngine> {
    static ENGINE: OnceLock<Option<CudaEngine>> = OnceLock::new();
    ENGINE.get_or_init(|| gpu::gpu().map(|gpu| CudaEngine::new(&gpu).expect("a stream"))).as_ref()
}

/// The GPU as one of these tests sets it up.
struct OnGpu {
    deterministic: bool,
}

impl OnGpu {
    fn engine(&self) -> Result<CudaEngine, RunError> {
        let engine = engine().ok_or("no GPU")?;
        Ok(engine.clone().with_deterministic(self.deterministic))
    }
}

impl Implementation for OnGpu {
    fn name(&self) -> String {
        format!(
            "GPU, {}",
            if self.deterministic { "one order of additions" } else { "any order of additions" }
        )
    }

    fn supports(&self, dtype: Dtype, problem: &Problem) -> Result<(), String> {
        if dtype == Dtype::F32 {
            return Err("the kernels are of 16-bit formats".into());
        }
        check_features(problem).map_err(|refused| refused.to_string())?;
        self.engine().map(drop).map_err(|error| error.to_string())
    }

    fn has_deterministic_backward(&self) -> bool {
        self.deterministic
    }

    fn largest_lse_of_p(&self) -> Option<f64> {
        Some(1_048_576.0)
    }

    fn spreads_non_finite(&self) -> bool {
        true
    }

    fn forward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, T>,
    ) -> Result<(), RunError> {
        Ok(self.engine()?.forward(problem, inputs, outputs)?)
    }

    fn backward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, T>,
    ) -> Result<(), RunError> {
        Ok(self.engine()?.backward(problem, inputs, gradients)?)
    }
}

mod adding {
    signflash_core::test_implementation!(super::OnGpu { deterministic: false });
}

mod deterministic {
    signflash_core::test_implementation!(super::OnGpu { deterministic: true });
}
