//! What these libraries read is ONNX: the model in the folder, from one tensor to another, the weights of which are constants.

use rten::ModelOptions;
use rten_tensor::prelude::*;
use tract_linalg::multithread::{Executor, set_default_executor};
use tract_onnx::prelude::{Framework, InferenceModelExt, IntoRunnable, Tensor, tvec};

use crate::{Call, Problem, Result};

pub fn rten(problem: &Problem) -> Result<Call> {
    let model =
        ModelOptions::with_all_ops().prepack_weights(true).load_file(problem.folder.join("model.onnx"))?;
    let x = rten_tensor::Tensor::from_data(&problem.sizes, problem.take(&problem.sizes)?);
    Ok(Box::new(move || {
        let y = model.run_one(x.view().into(), None)?;
        Ok(Box::new(move || Ok(y.into_tensor::<f32>().ok_or("not f32")?.to_vec())))
    }))
}

pub fn tract(problem: &Problem) -> Result<Call> {
    // It works on one thread unless it is told otherwise.
    if rayon::current_num_threads() > 1 {
        set_default_executor(Executor::RayonGlobal);
    }
    let model = tract_onnx::onnx().model_for_path(problem.folder.join("model.onnx"))?;
    let model = model.into_optimized()?.into_runnable()?;
    let x = Tensor::from_shape(&problem.sizes, &problem.take(&problem.sizes)?)?;
    Ok(Box::new(move || {
        let mut y = model.run(tvec![x.clone().into()])?;
        Ok(Box::new(move || Ok(y.remove(0).try_as_plain_ram()?.as_slice::<f32>()?.to_vec())))
    }))
}
