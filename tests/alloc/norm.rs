//! Normalisation.

use tilewise::norm::{
    BatchNormalization, GroupNormalization, InstanceNormalization, LayerNormalization, NormGradientsMut,
    RmsGradientsMut, RmsNormalization,
};
use tilewise::{Element, Tensor};

use super::{Measure, matrix};

pub fn calls<T: Element>(call: &mut Measure) {
    let (layer, rms, batch) = (LayerNormalization::new(), RmsNormalization::new(), BatchNormalization::new());
    let (group, instance) = (GroupNormalization::new(4), InstanceNormalization::new());
    let x = matrix::<T>([700, 96]);
    let (mut y, mut sum) = (matrix::<T>([700, 96]), matrix::<T>([700, 96]));
    let mut vectors = [(); 4].map(|()| Tensor::<T, 1>::full([96], T::ONE).unwrap());
    let [scale, shift, mean, variance] = &mut vectors;
    call("layer norm", &mut || {
        let (scale, shift) = (Some(scale.view()), Some(shift.view()));
        let (sum, y) = (sum.view_mut(), y.view_mut());
        layer.forward_residual_into(x.view(), x.view(), scale, shift, sum, y).unwrap();
    });
    let mut turned = matrix::<T>([96, 700]);
    call("layer norm, strided", &mut || {
        layer.forward_into(x.view(), None, Some(shift.view()), turned.view_mut().transpose()).unwrap();
    });
    call("layer norm, backward", &mut || {
        let (dx, dscale) = (Some(y.view_mut()), Some(mean.view_mut()));
        let gradients = NormGradientsMut { input: dx, scale: dscale, shift: Some(variance.view_mut()) };
        layer.backward_into(x.view(), Some(scale.view()), x.view(), T::ZERO, gradients).unwrap();
    });
    call("batch norm", &mut || {
        let (mean, variance) = (mean.view_mut(), variance.view_mut());
        batch.forward_training_into(x.view(), None, None, mean, variance, y.view_mut()).unwrap();
    });
    let image = x.view().reshape([25, 96, 28]).unwrap();
    call("group norm, backward", &mut || {
        let dx = Some(y.view_mut().reshape([25, 96, 28]).unwrap());
        let gradients = NormGradientsMut { input: dx, scale: Some(mean.view_mut()), shift: None };
        group.backward_into(image, None, image, T::ZERO, gradients).unwrap();
    });
    call("group norm", &mut || {
        let y = y.view_mut().reshape([25, 96, 28]).unwrap();
        group.forward_into(image, Some(scale.view()), Some(shift.view()), y).unwrap();
    });
    call("instance norm", &mut || {
        let y = y.view_mut().reshape([25, 96, 28]).unwrap();
        instance.forward_into(image, None, Some(shift.view()), y).unwrap();
    });
    call("instance norm, backward", &mut || {
        let dx = Some(y.view_mut().reshape([25, 96, 28]).unwrap());
        let gradients = NormGradientsMut { input: dx, scale: None, shift: Some(mean.view_mut()) };
        instance.backward_into(image, None, image, T::ONE, gradients).unwrap();
    });
    call("batch norm of images", &mut || {
        let y = y.view_mut().reshape([25, 96, 28]).unwrap();
        batch.forward_inference_into(image, mean.view(), variance.view(), None, None, y).unwrap();
    });
    call("batch norm of images, backward", &mut || {
        let dx = Some(y.view_mut().reshape([25, 96, 28]).unwrap());
        let gradients = NormGradientsMut { input: dx, scale: None, shift: Some(mean.view_mut()) };
        batch.backward_into(image, None, None, image, T::ONE, gradients).unwrap();
    });
    // Axes that do not merge.
    let apart = image.slice(0, .., 2).unwrap().slice(1, ..90, 1).unwrap();
    let mut out = Tensor::<T, 3>::zeros(apart.shape()).unwrap();
    call("layer norm, rows apart", &mut || layer.forward_into(apart, None, None, out.view_mut()).unwrap());
    call("layer norm, rows apart, backward", &mut || {
        let gradients = NormGradientsMut { input: Some(out.view_mut()), scale: None, shift: None };
        layer.backward_into(apart, None, apart, T::ZERO, gradients).unwrap();
    });
    call("batch norm, constant", &mut || {
        let (scale, mean, variance) = (Some(scale.view()), mean.view(), variance.view());
        batch.forward_inference_into(x.view(), mean, variance, scale, None, y.view_mut()).unwrap();
    });
    call("batch norm, backward", &mut || {
        let (dx, dscale) = (Some(y.view_mut()), Some(variance.view_mut()));
        let gradients = NormGradientsMut { input: dx, scale: dscale, shift: None };
        batch.backward_into(x.view(), None, Some(scale.view()), x.view(), T::ZERO, gradients).unwrap();
    });
    call("RMS norm", &mut || {
        let (sum, y) = (sum.view_mut(), y.view_mut());
        rms.forward_residual_into(x.view(), x.view(), Some(scale.view()), sum, y).unwrap();
    });
    call("RMS norm, backward", &mut || {
        let gradients = RmsGradientsMut { input: Some(y.view_mut()), scale: Some(mean.view_mut()) };
        rms.backward_into(x.view(), Some(scale.view()), x.view(), T::ONE, gradients).unwrap();
    });
}
