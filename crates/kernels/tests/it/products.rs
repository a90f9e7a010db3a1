//! Products of matrices in every arrangement.

use crate::emulator::Order;
use crate::{assert_close, in_both_orders, numbers, open};
use half::bf16;
use zerog_kernels::cuda::Operand;
use zerog_kernels::matmul::{self, Precision, Shape, Weight, Write, narrow};

const SHAPE: Shape = Shape {
    rows: 5,
    outputs: 7,
    inputs: 11,
};

#[test]
fn the_three_products_of_a_linear_layer_agree_with_the_processors() {
    let cuda = open(Order::Forward);
    let (x, w, g) = (numbers(1, 55), numbers(2, 77), numbers(3, 35));
    let [device_x, device_w, device_g] = [&x, &w, &g].map(|values| cuda.upload(values).unwrap());
    for (write, scale) in [(Write::Replace, 1.0), (Write::Add, 0.5)] {
        let (mut y, mut dw) = (numbers(4, 35), numbers(5, 77));
        let (mut device_y, mut device_dw) = (cuda.upload(&y).unwrap(), cuda.upload(&dw).unwrap());
        matmul::forward(
            SHAPE,
            &x,
            Weight::F32(&w),
            &mut y,
            write,
            scale,
            Precision::F32,
        );
        let (left, right) = (
            Operand::rows(&device_x, 11),
            Operand::transposed(&device_w, 11),
        );
        cuda.multiply(left, right, &mut device_y, write, scale)
            .unwrap();
        assert_close("forward", &device_y.to_vec().unwrap(), &y, 1e-6);

        matmul::weight_gradient(SHAPE, &g, &x, &mut dw, write, scale);
        let (left, right) = (
            Operand::transposed(&device_g, 7),
            Operand::rows(&device_x, 11),
        );
        cuda.multiply(left, right, &mut device_dw, write, scale)
            .unwrap();
        assert_close("weight gradient", &device_dw.to_vec().unwrap(), &dw, 1e-6);
    }
    let mut dx = vec![0.0; 55];
    let mut device_dx = cuda.allocate(55).unwrap();
    matmul::input_gradient(
        SHAPE,
        &g,
        Weight::F32(&w),
        &mut dx,
        Write::Replace,
        Precision::F32,
    );
    let (left, right) = (Operand::rows(&device_g, 7), Operand::rows(&device_w, 11));
    cuda.multiply(left, right, &mut device_dx, Write::Replace, 1.0)
        .unwrap();
    assert_close("input gradient", &device_dx.to_vec().unwrap(), &dx, 1e-6);
}

#[test]
fn rounding_to_bf16_is_the_processors_and_products_of_it_are_exact_in_their_inputs() {
    in_both_orders(|cuda| {
        let mut x = numbers(1, 55);
        x[..4].copy_from_slice(&[f32::NAN, f32::INFINITY, -0.0, 1.003_906_3]);
        let mut rounded = vec![bf16::ZERO; 55];
        narrow(&x, &mut rounded);
        let mut device = cuda.allocate::<bf16>(55).unwrap();
        cuda.narrow(&cuda.upload(&x).unwrap(), &mut device).unwrap();
        let bits =
            |values: &[bf16]| -> Vec<u16> { values.iter().map(|value| value.to_bits()).collect() };
        assert_eq!(bits(&device.to_vec().unwrap())[1..], bits(&rounded)[1..]);
        assert!(device.to_vec().unwrap()[0].is_nan());
        let mut wide = cuda.allocate::<f32>(55).unwrap();
        cuda.widen(&device, &mut wide).unwrap();
        let expected: Vec<f32> = rounded.iter().map(|value| value.to_f32()).collect();
        assert_eq!(wide.to_vec().unwrap()[1..], expected[1..]);

        let x: Vec<bf16> = numbers(1, 55).into_iter().map(bf16::from_f32).collect();
        let w: Vec<bf16> = numbers(2, 77).into_iter().map(bf16::from_f32).collect();
        let mut y = vec![0.0; 35];
        let exact: Vec<f32> = x.iter().map(|value| value.to_f32()).collect();
        matmul::forward(
            SHAPE,
            &exact,
            Weight::Bf16(&w),
            &mut y,
            Write::Replace,
            1.0,
            Precision::F32,
        );
        let (x, w) = (cuda.upload(&x).unwrap(), cuda.upload(&w).unwrap());
        let mut device_y = cuda.allocate(35).unwrap();
        let (left, right) = (Operand::rows(&x, 11), Operand::transposed(&w, 11));
        cuda.multiply(left, right, &mut device_y, Write::Replace, 1.0)
            .unwrap();
        assert_close("bf16", &device_y.to_vec().unwrap(), &y, 1e-6);
    });
}
