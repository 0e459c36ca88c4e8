# Elementwise functions without branches, so that loops over them become vector instructions; Base's
# exp and tanh do not. Errors are of a unit or two in the last place.

const LOG2E = 1.4426950408889634
# ln 2 in two parts, the first with zeros at its end: k LN2HI is exact
const LN2HI = 0.6931471803691238
const LN2LO = 1.9082149292705877e-10
const ROUND64 = 6755399441055744.0      # 1.5 * 2^52: adding it rounds, and leaves k in the low bits
const ROUND32 = 12582912.0f0            # 1.5 * 2^23

"exp(x) = 2^k (1 + m): 2^k and m, for |x| within the range of exponents."
@inline function exp_parts(x::Float64)
    x = ifelse(x < -708.0, -708.0, ifelse(x > 709.0, 709.0, x))
    shifted = muladd(x, LOG2E, ROUND64)
    k = shifted - ROUND64
    r = muladd(-k, LN2LO, muladd(-k, LN2HI, x))
    # Taylor to r^13: |r| <= ln(2)/2 leaves 4e-18
    m = evalpoly(
        r, (
            0.5, 1 / 6, 1 / 24, 1 / 120, 1 / 720, 1 / 5040, 1 / 40320, 1 / 362880, 1 / 3628800,
            1 / 39916800, 1 / 479001600, 1 / 6227020800,
        )
    )
    m = muladd(r * r, m, r)
    return reinterpret(Float64, (reinterpret(Int64, shifted) + 1023) << 52), m
end

@inline function exp_parts(x::Float32)
    x = ifelse(x < -87.0f0, -87.0f0, ifelse(x > 88.0f0, 88.0f0, x))
    shifted = muladd(x, Float32(LOG2E), ROUND32)
    k = shifted - ROUND32
    r = muladd(-k, -2.1219444f-4, muladd(-k, 0.69335938f0, x))
    m = evalpoly(r, (0.5f0, 1.0f0 / 6, 1.0f0 / 24, 1.0f0 / 120, 1.0f0 / 720, 1.0f0 / 5040))
    m = muladd(r * r, m, r)
    return reinterpret(Float32, (reinterpret(Int32, shifted) + Int32(127)) << 23), m
end

@inline function exp_(x)
    s, m = exp_parts(x)
    return muladd(s, m, s)
end

@inline function expm1_(x)
    s, m = exp_parts(x)
    return muladd(s, m, s - one(s))
end

@inline function tanh_(x)
    e = expm1_(-2 * abs(x))
    return copysign(-e / (e + 2), x)
end

@inline sigmoid_(x) = inv(1 + exp_(-x))

erf_(x::Float64) = ccall((:erf, Base.Math.libm), Float64, (Float64,), x)
erf_(x::Float32) = ccall((:erff, Base.Math.libm), Float32, (Float32,), x)

# A function of the tape: value(f, x, a, b) and slope(f, x, y, a, b) = dy/dx, with y the value and a, b
# its constants.
struct Affine end           # a x + b
struct Elu end              # a: of the negative side
struct LeakyRelu end        # a: slope of the negative side
struct Clamp end            # from a to b
struct Softplus end         # a: beta, b: threshold
struct Power end            # x^a
struct Gelu end
struct GeluTanh end
struct Silu end
for name in (:Tanh, :Sigmoid, :Exp, :Log, :Sqrt, :Sin, :Cos, :Abs, :Inv)
    @eval struct $name end
end

# In the order of their codes, which the host counts from 0.
const FUNCTIONS = (
    Affine(), Tanh(), Sigmoid(), Elu(), LeakyRelu(), Clamp(), Softplus(), Silu(), Gelu(), GeluTanh(),
    Exp(), Log(), Sqrt(), Sin(), Cos(), Abs(), Inv(), Power(),
)

@inline value(::Affine, x, a, b) = muladd(a, x, b)
@inline slope(::Affine, x, y, a, b) = a
@inline value(::Tanh, x, a, b) = tanh_(x)
@inline slope(::Tanh, x, y, a, b) = 1 - y * y
@inline value(::Sigmoid, x, a, b) = sigmoid_(x)
@inline slope(::Sigmoid, x, y, a, b) = y * (1 - y)
@inline value(::Elu, x, a, b) = ifelse(x > 0, x, a * expm1_(ifelse(x > 0, zero(x), x)))
@inline slope(::Elu, x, y, a, b) = ifelse(x > 0, one(x), y + a)
@inline value(::LeakyRelu, x, a, b) = ifelse(x > 0, x, a * x)
@inline slope(::LeakyRelu, x, y, a, b) = ifelse(x > 0, one(x), a)
@inline value(::Clamp, x, a, b) = ifelse(x < a, a, ifelse(x > b, b, x))
@inline slope(::Clamp, x, y, a, b) = ifelse((x < a) | (x > b), zero(x), one(x))
@inline value(::Softplus, x, a, b) = a * x > b ? x : log1p(exp_(a * x)) / a
@inline slope(::Softplus, x, y, a, b) = a * x > b ? one(x) : sigmoid_(a * x)
@inline value(::Silu, x, a, b) = x * sigmoid_(x)
@inline function slope(::Silu, x, y, a, b)
    s = sigmoid_(x)
    return muladd(y, 1 - s, s)
end
@inline value(::Gelu, x, a, b) = x * (1 + erf_(x * oftype(x, 0.7071067811865476))) / 2
@inline function slope(::Gelu, x, y, a, b)
    cdf = (1 + erf_(x * oftype(x, 0.7071067811865476))) / 2
    return muladd(x, exp_(-x * x / 2) * oftype(x, 0.3989422804014327), cdf)
end
@inline inner(x) = oftype(x, 0.7978845608028654) * muladd(oftype(x, 0.044715), x^3, x)
@inline value(::GeluTanh, x, a, b) = x * (1 + tanh_(inner(x))) / 2
@inline function slope(::GeluTanh, x, y, a, b)
    w = tanh_(inner(x))
    rate = oftype(x, 0.7978845608028654) * muladd(oftype(x, 0.134145), x * x, one(x))
    return (1 + w) / 2 + x * (1 - w * w) * rate / 2
end
@inline value(::Exp, x, a, b) = exp(x)
@inline slope(::Exp, x, y, a, b) = y
@inline value(::Log, x, a, b) = x < 0 ? oftype(x, NaN) : log(x)
@inline slope(::Log, x, y, a, b) = inv(x)
@inline value(::Sqrt, x, a, b) = x < 0 ? oftype(x, NaN) : sqrt(x)
@inline slope(::Sqrt, x, y, a, b) = inv(2 * y)
@inline value(::Sin, x, a, b) = isfinite(x) ? sin(x) : oftype(x, NaN)
@inline slope(::Sin, x, y, a, b) = isfinite(x) ? cos(x) : oftype(x, NaN)
@inline value(::Cos, x, a, b) = isfinite(x) ? cos(x) : oftype(x, NaN)
@inline slope(::Cos, x, y, a, b) = isfinite(x) ? -sin(x) : oftype(x, NaN)
@inline value(::Abs, x, a, b) = abs(x)
@inline slope(::Abs, x, y, a, b) = oftype(x, sign(x))
@inline value(::Inv, x, a, b) = inv(x)
@inline slope(::Inv, x, y, a, b) = -y * y
@inline function power(x, a)
    isinteger(a) && abs(a) < 64 && return x^Int(a)
    return x < 0 ? oftype(x, NaN) : x^a
end
@inline value(::Power, x, a, b) = a == 2 ? x * x : power(x, a)
@inline slope(::Power, x, y, a, b) = a == 2 ? 2x : a * power(x, a - 1)
