//! The value head: a number for every hidden state, with its gradient, its moments and its update.

use crate::Error;
use crate::Result;
use crate::model::gradients::Gradients;
use crate::model::optimizer::{AdamW, AdamWConfig, MomentFormat, TensorState};
use crate::model::params::{Param, ParamData, ParamId, Params};
use crate::model::transformer::ParamInfo;
use crate::tensor::Tensor;
use crate::tensor::ops::{matmul, residual};
use std::ops::Range;

const WEIGHT: ParamId = 0;
const BIAS: ParamId = 1;

/// `V = h w' + b` for hidden states h `[T, D]`; w `[1, D]` and b `[1]` begin at zero, so that a fresh critic expects nothing.
pub struct ValueHead {
    params: Params,
    gradients: Gradients,
    optimizer: AdamW,
}

impl ValueHead {
    /// A head of zeros for hidden states of `width`, with moments of zero, in f32 whatever the configuration says of others.
    ///
    /// # Errors
    /// None on the processor, where the head is.
    pub fn new(width: usize, config: AdamWConfig) -> Result<Self> {
        let mut params = Params::default();
        for (name, shape) in [("weight", vec![1, width]), ("bias", vec![1])] {
            let info = ParamInfo { name: format!("value_head.{name}"), decay: shape.len() > 1, shape };
            params.push(Param { data: ParamData::zeros(&info.shape).into(), info, trainable: true });
        }
        let config = AdamWConfig { moments: MomentFormat::F32, ..config };
        Ok(Self { gradients: Gradients::new(&params, None)?, optimizer: AdamW::for_params(&params, config)?, params })
    }

    /// Its tensors, in canonical order.
    pub fn trainable(&self) -> Vec<ParamInfo> {
        self.params.all().iter().map(|p| p.info.clone()).collect()
    }

    /// The values `[T]` of hidden states `[T, D]`.
    pub fn forward(&self, hidden: &Tensor) -> Vec<f32> {
        let mut y = matmul::forward(hidden, self.params.weight(WEIGHT));
        residual::add_bias(&mut y, self.params.vector(BIAS));
        y.into_vec()
    }

    /// The gradient by the hidden states, `d_value w`, for d loss / d value `[T]`; adds the head's own gradient, summed over `chunks` of the
    /// rows (a plan's head chunks).
    pub fn backward(&mut self, hidden: &Tensor, d_value: &[f32], chunks: &[Range<usize>]) -> Tensor {
        let dy = Tensor::from_vec(&[d_value.len(), 1], d_value.to_vec());
        if let Some(dw) = self.gradients.matrix_mut(WEIGHT) {
            matmul::backward_weight(&dy, hidden, chunks, dw);
        }
        if let Some(db) = self.gradients.vector_mut(BIAS) {
            residual::bias_gradient(&dy, chunks, db);
        }
        matmul::backward_input(&dy, self.params.weight(WEIGHT))
    }

    /// Sets its gradient to zero.
    ///
    /// # Errors
    /// None on the processor, where the head is.
    pub fn zero_gradients(&mut self) -> Result<()> {
        self.gradients.zero()
    }

    /// The 2-norm of its gradient.
    ///
    /// # Errors
    /// None on the processor, where the head is.
    pub fn gradient_norm(&mut self) -> Result<f64> {
        self.gradients.norm()
    }

    /// A tensor's gradient, row-major.
    ///
    /// # Errors
    /// None on the processor, where the head is.
    pub fn gradient(&mut self, name: &str) -> Result<Option<Vec<f32>>> {
        self.gradients.export(name)
    }

    /// One step of AdamW, clipped by `norm`: that of its gradient, or of the whole critic's.
    pub fn step(&mut self, norm: f64, lr: f64, step: u64) -> Result<()> {
        self.optimizer.apply(&mut self.params, &self.gradients, norm, lr, step)
    }

    /// Weight, first and second moment of a tensor, row-major.
    pub fn export(&self, name: &str) -> Result<TensorState> {
        let (first, second) = self.optimizer.export(name)?;
        Ok(TensorState { weight: self.params.all()[self.find(name)?].data.to_rows()?, first, second })
    }

    /// Replaces a tensor and its moments.
    pub fn import(&mut self, name: &str, state: &TensorState) -> Result<()> {
        let weight = &state.weight;
        let (id, compute) = (self.find(name)?, self.params.compute());
        let param = &mut self.params.all_mut()[id];
        if weight.len() != param.info.shape.iter().product::<usize>() {
            return Err(Error::input(format!("{} numbers for the shape {:?}", weight.len(), param.info.shape)).at(name));
        }
        param.data = ParamData::from_rows(compute, &param.info.shape, weight).into();
        self.optimizer.import(name, &state.first, &state.second)
    }

    fn find(&self, name: &str) -> Result<ParamId> {
        self.params.find(name).ok_or_else(|| Error::input(format!("the value head has no tensor named {name}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::optimizer::Moment;

    fn config() -> AdamWConfig {
        AdamWConfig::default()
    }

    #[test]
    fn is_linear_and_its_gradient_is_the_hand_written_one() {
        let mut head = ValueHead::new(3, config()).unwrap();
        let hidden = Tensor::from_vec(&[2, 3], vec![1.0, 2.0, 3.0, -1.0, 0.5, 4.0]);
        assert_eq!(head.forward(&hidden), [0.0, 0.0]);
        let zeros = |n: usize| Moment::F32(vec![0.0; n]);
        let state = |weight: Vec<f32>| TensorState { first: zeros(weight.len()), second: zeros(weight.len()), weight };
        head.import("value_head.weight", &state(vec![0.5, -1.0, 2.0])).unwrap();
        head.import("value_head.bias", &state(vec![0.25])).unwrap();
        assert_eq!(head.forward(&hidden), [4.75, 7.25]);
        let d_hidden = head.backward(&hidden, &[2.0, -1.0], &[0..1, 1..2]);
        assert_eq!(d_hidden.data(), [1.0, -2.0, 4.0, -0.5, 1.0, -2.0]);
        assert_eq!(head.gradient("value_head.weight").unwrap().unwrap(), [3.0, 3.5, 2.0]);
        assert_eq!(head.gradient("value_head.bias").unwrap().unwrap(), [1.0]);
        let norm = head.gradient_norm().unwrap();
        head.step(norm, 0.1, 1).unwrap();
        let TensorState { weight, first, .. } = head.export("value_head.weight").unwrap();
        assert!(weight[0] < 0.5 && matches!(first, Moment::F32(m) if m[0] > 0.0));
        head.zero_gradients().unwrap();
        assert_eq!(head.gradient_norm().unwrap(), 0.0);
    }
}
