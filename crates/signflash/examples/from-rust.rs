//! Attention of slices, forward and backward.

use signflash::prelude::*;

fn main() -> Result<(), ProblemError> {
    let shape = Shape::new(2, 100, 120).heads(8, 2).head_dim(64); // 8 query heads, 2 key heads
    let numbers = |step: f32, len: usize| (0..len).map(|i| (i as f32 * step).sin()).collect::<Vec<_>>();
    let (q, k, v) = (numbers(0.3, 102_400), numbers(0.7, 30_720), numbers(1.1, 30_720));

    let mut generator = DropoutGenerator::new(42); // its state can be saved and restored
    for step in 0..2 {
        let dropout = generator.next_dropout(0.1, &shape)?;
        let problem = Problem::builder(shape).causal(true).dropout(dropout).build()?;
        let attended = attention(&problem, &q, &k, &v)?;
        let gradients = attended.backward(&attended.out)?; // of half the sum of squares
        let norm = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt();
        println!("step {step}: |out| {:.4}, |dq| {:.6}", norm(&attended.out), norm(&gradients.dq));
    }
    Ok(())
}
