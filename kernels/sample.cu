// sample.cu - the next token of each row of logits: the choice of ops/sample, on the device, the same token for the same logits.
//
//   greedy             the first of the largest logits
//   without filters    inversion of the cumulative distribution at u, in the vocabulary's order: the chunk of 2048 tokens, of which the head has the
//                      sums, then the piece of 64 tokens, then the token
//   with filters       top-k, top-p and min-p; the candidates from the most to the least likely, inverted at u
//
// Shapes: logits [rows, V] f32, V a multiple of 8; sums [rows, ceil(V / 2048), 3] f32, the head's at the row's temperature (1 where it is greedy);
// draws [rows, 6]: temperature (0: greedy), top-k (0: all), top-p, min-p, and u's two halves; picks [rows, 4] f64: the row's largest z and its sum
// of e^{z - max}, from which the host forms the log-probability, the token's z, and the token; -1 in its place where more than 2048 tokens pass the
// filters: the host then asks for the row and chooses.
//
// Order of sums. Probabilities are f64; a row's sum is that of its chunks in order, a piece's that of its tokens, the candidates' from the most likely
// on, each one chain. A cut by a floor leaves out only what no filter can keep, so it changes no bit.
//
// Of a row with a NaN only the log-probability is defined: NaN.
//
// Bytes: a chunk of 8 KiB and the sums a row; with filters the logits twice, or up to four times where the first cut leaves too many. Floors for 256 rows of
// 151936 at 4.3 TB/s: some 1 us, and 2 x 156 MB or 72 us with filters. Chains of f64, one step after another: 310, some 5 us; with filters three times as
// many as there are candidates. Not measured on a chip yet.
#include "sorft.cuh"
#include "row_softmax.cuh"

namespace sample {

constexpr int CHUNK = 2048, PIECE = 64, THREADS = 256, WARPS = THREADS / 32, EACH = CHUNK / THREADS, PIECES = CHUNK / PIECE;
// The most chunks of a row: MOST_CHUNKS of src/tensor/ops/sample/cuda.rs.
constexpr int CHUNKS = THREADS;
constexpr int KEPT = 2048;

// How a row's token is chosen.
struct Draw {
  float temperature, top_p, min_p;
  u32 top_k;
  double u;

  __device__ __forceinline__ Draw(const u32 *draws, i64 row) {
    const u32 *own = draws + 6 * row;
    temperature = __uint_as_float(own[0]), top_k = own[1], top_p = __uint_as_float(own[2]), min_p = __uint_as_float(own[3]);
    u = __longlong_as_double((i64)((u64)own[5] << 32 | own[4]));
  }
  __device__ __forceinline__ bool greedy() const { return temperature == 0.0f; }
  __device__ __forceinline__ bool filtered() const { return !greedy() && (top_k > 0 || top_p < 1.0f || min_p > 0.0f); }
  __device__ __forceinline__ float divisor() const { return greedy() ? 1.0f : temperature; }
};

// A mass and what is left there.
struct Walk {
  int taken;
  double rest;
};

// The first of `count` masses that `rest` does not pass; the last that is not zero, where rounding lets it pass them all.
template <class Mass>
__device__ __forceinline__ Walk walk(int count, double rest, const Mass &mass) {
  Walk w = {0, rest};
  for (int i = 0; i < count; i++) {
    const double m = mass(i);
    if (m > 0.0) w = {i, rest};
    if (rest < m) break;
    rest -= m;
  }
  return w;
}

// The largest of the block's numbers. `scratch` holds WARPS numbers, of this call alone.
__device__ __forceinline__ float block_max(float v, float *scratch) {
  v = warp_max(v);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  v = scratch[0];
  SORFT_UNROLL
  for (int w = 1; w < WARPS; w++) v = fmaxf(v, scratch[w]);
  return v;
}

// The row's chunks: the largest z of each to tops, e^{it - max} times its sum to masses, and the row's largest. For all threads after it.
__device__ __forceinline__ double chunks_of(float *tops, double *masses, float *scratch, const float *sums, int chunks) {
  const bool there = threadIdx.x < (u32)chunks;
  const float top = there ? sums[3 * threadIdx.x] : __uint_as_float(0xff800000u);
  const double max = block_max(top, scratch);
  if (there) tops[threadIdx.x] = top, masses[threadIdx.x] = row_softmax::mass(top, sums[3 * threadIdx.x + 1], max);
  __syncthreads();
  return max;
}

__device__ __forceinline__ double total(const double *masses, int count) {
  double sum = 0.0;
  for (int i = 0; i < count; i++) sum += masses[i];
  return sum;
}

__device__ __forceinline__ void put(double *picks, i64 row, double max, double sum, float z, double id) {
  double *own = picks + 4 * row;
  own[0] = max, own[1] = sum, own[2] = z, own[3] = id;
}

// A logit and its place.
struct Best {
  float v;
  int at;

  __device__ __forceinline__ void take(float other, int place) {
    if (other > v || (other == v && place < at)) v = other, at = place;
  }
};

// Where in the chunk its largest number stands first. `best` holds WARPS. Thread 0 has the result.
__device__ __forceinline__ int first_largest(const float (&v)[EACH], int there, Best *best) {
  Best own = {__uint_as_float(0xff800000u), CHUNK};
  SORFT_UNROLL
  for (int i = 0; i < EACH; i++)
    if (i < there) own.take(v[i], threadIdx.x * EACH + i);
  SORFT_UNROLL
  for (int mask = 16; mask > 0; mask >>= 1) {
    const float v = __shfl_xor_sync(FULL_WARP, own.v, mask);
    const int at = __shfl_xor_sync(FULL_WARP, own.at, mask);
    own.take(v, at);
  }
  if (threadIdx.x % 32 == 0) best[threadIdx.x / 32] = own;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int w = 1; w < WARPS; w++) own.take(best[w].v, best[w].at);
  return own.at < CHUNK ? own.at : 0;
}

// Masses of a chunk lie with a gap behind each piece, so that threads with a piece each meet in no bank.
__device__ __forceinline__ int gapped(int i) { return i + i / PIECE; }

// The token of the chunk that `rest` does not pass, in thread 0. masses holds gapped(CHUNK), pieces PIECES.
__device__ __forceinline__ int inverted(const float (&v)[EACH], int there, int count, float divisor, double max, double rest, double *masses,
                                        double *pieces) {
  SORFT_UNROLL
  for (int i = 0; i < EACH; i++)
    if (i < there) masses[gapped(threadIdx.x * EACH + i)] = row_softmax::exp_f64((double)(v[i] / divisor) - max);
  __syncthreads();
  if (threadIdx.x < PIECES) {
    double sum = 0.0;
    for (int i = threadIdx.x * PIECE; i < min(count, (int)(threadIdx.x + 1) * PIECE); i++) sum += masses[gapped(i)];
    pieces[threadIdx.x] = sum;
  }
  __syncthreads();
  if (threadIdx.x > 0) return 0;
  const Walk piece = walk((count + PIECE - 1) / PIECE, rest, [&](int i) { return pieces[i]; });
  const int first = piece.taken * PIECE;
  return first + walk(min(PIECE, count - first), piece.rest, [&](int i) { return masses[gapped(first + i)]; }).taken;
}

// ---------------------------------------------------------------------------------------------------------------------------- filters

// A number that grows with the logit.
__device__ __forceinline__ u32 rank_of(float logit) {
  const u32 bits = __float_as_uint(logit);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float logit_of(u32 rank) { return __uint_as_float(rank >> 31 ? rank & 0x7fffffffu : ~rank); }

// The rank that a candidate has at least, as far as that is certain beforehand, with room for rounding. Top-p is a part of what top-k leaves, so with both
// of them nothing is; without top-k, the tokens that are less than (1 - p) / V of the whole can together not have the last 1 - p of it.
__device__ __forceinline__ u32 floor_of(const Draw &d, double max, double sum, i32 vocab) {
  double mass = d.top_p < 1.0f && d.top_k > 0 ? 0.0 : (double)d.min_p;
  if (d.top_p < 1.0f && d.top_k == 0) {
    const double of_top_p = (1.0 - (double)d.top_p) * sum / vocab;
    if (of_top_p > mass) mass = of_top_p;
  }
  if (!(mass > 1e-37)) return 0;
  const double z = max + 0.6931471805599453 * (double)ptx::lg2((float)mass);
  const double room = 1e-3 + 1e-6 * (max < 0.0 ? -max : max);
  return rank_of((float)((z - room) * (double)d.temperature));
}

// Calls use(column, logit) for all columns of a row that are numbers, spread over the block. Four loads of a thread are on the way at once.
template <class Use>
__device__ __forceinline__ void each_logit(const float *row, i32 vocab, const Use &use) {
  constexpr int STEP = THREADS * 4, LOADS = 4;
  for (int first = threadIdx.x * 4; first < vocab; first += LOADS * STEP) {
    float4 v[LOADS];
    SORFT_UNROLL
    for (int i = 0; i < LOADS; i++)
      v[i] = first + i * STEP < vocab ? load_vec<float4>(row + first + i * STEP) : float4{};
    SORFT_UNROLL
    for (int i = 0; i < LOADS; i++) {
      const int c = first + i * STEP;
      const float of[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
      SORFT_UNROLL
      for (int j = 0; j < 4; j++)
        if (c < vocab && of[j] == of[j]) use(c + j, of[j]);
    }
  }
}

// Digits of a rank by which its largest are sought: 11, 11 and 10 bits.
constexpr int BINS = 2048, BINS_EACH = BINS / THREADS;
__device__ __forceinline__ int shift_of(int digit) { return digit == 0 ? 21 : digit == 1 ? 10 : 0; }

// How many tokens, and e^{z - max} of all of them in units of 2^-28, rounded down: sums of integers have no order.
struct Amount {
  u32 count;
  u64 mass;

  __device__ __forceinline__ void add(const Amount &more) { count += more.count, mass += more.mass; }
  __device__ __forceinline__ bool reaches(const Amount &enough) const { return count >= enough.count || mass >= enough.mass; }
};
constexpr float UNITS = 268435456.0f;
constexpr u32 ALL = 0xffffffffu;
constexpr u64 WHOLE = ~0ull;

// The amount from which on what comes behind the likeliest tokens passes no filter. Where nothing is known, the largest numbers. There is room for what masses
// in f32 are off by, which grows with the largest z.
__device__ __forceinline__ Amount enough_of(const Draw &d, double max, double sum) {
  Amount enough = {d.top_k > 0 ? d.top_k : ALL, WHOLE};
  const double room = 1e-4 + 2e-7 * (max < 0.0 ? -max : max), mass = ((double)d.top_p + room) * sum;
  if (d.top_k == 0 && mass < sum) enough.mass = (u64)(mass * (double)UNITS);
  return enough;
}

// A bin's mass lies in two parts of 32 bits, of 14 and of 18 bits a token, as shared memory adds no 64 at once.
__device__ __forceinline__ void add_mass(u64 *masses, u32 bin, float mass) {
  const u32 units = (u32)(mass * UNITS);
  u32 *parts = reinterpret_cast<u32 *>(masses + bin);
  atomicAdd(parts, units & 0x3fffu);
  atomicAdd(parts + 1, units >> 14);
}
__device__ __forceinline__ Amount amount_of(const u32 *counts, const u64 *masses, int bin) {
  return {counts[bin], ((masses[bin] >> 32) << 14) + (masses[bin] & 0xffffffffu)};
}

// What the thread in which there is enough tells of a histogram: the floor, how many pass it, and what is above all of the floor's bin.
struct Cut {
  u32 rank, count;
  Amount above;
  u32 reached;
};

// The lowest rank, in steps of a digit, such that those that reach it are enough: a thread has eight bins, the first those of the largest. `warps`
// holds WARPS.
__device__ __forceinline__ void cut_at(Cut *cut, const u32 *counts, const u64 *masses, Amount *warps, int digit, u32 rank, const Amount &above,
                                       const Amount &enough) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = BINS - 1 - (int)threadIdx.x * BINS_EACH;
  Amount own = {0, 0};
  for (int i = 0; i < BINS_EACH; i++) own.add(amount_of(counts, masses, first - i));
  Amount upto = own;
  SORFT_UNROLL
  for (int delta = 1; delta < 32; delta <<= 1) {
    const Amount other = {__shfl_up_sync(FULL_WARP, upto.count, delta), __shfl_up_sync(FULL_WARP, upto.mass, delta)};
    if (lane >= delta) upto.add(other);
  }
  if (lane == 31) warps[warp] = upto;
  __syncthreads();
  Amount before = above;
  for (int w = 0; w < warp; w++) before.add(warps[w]);
  before.count += upto.count - own.count, before.mass += upto.mass - own.mass;
  Amount through = before;
  through.add(own);
  if (before.reaches(enough) || !(through.reaches(enough) || threadIdx.x == THREADS - 1)) return;
  int bin = first;
  Amount with = before;
  with.add(amount_of(counts, masses, bin));
  while (bin > first - BINS_EACH + 1 && !with.reaches(enough)) {
    before = with;
    with.add(amount_of(counts, masses, --bin));
  }
  *cut = {rank | (u32)bin << shift_of(digit), with.count, before, with.reaches(enough)};
}

// What the filtered choice keeps beside the logits.
struct Scratch {
  u32 *counts;
  u64 *masses;
  Amount *warps;
  Cut *cut;
};

// Raises the floor until at most KEPT tokens pass it, as far as `enough` allows.
__device__ __forceinline__ u32 raised(u32 floor, const float *row, i32 vocab, const Draw &d, double max, const Amount &enough, const Scratch &s) {
  Amount above = {0, 0};
  for (int digit = 0; digit < 3; digit++) {
    const int shift = shift_of(digit), width = digit == 2 ? 10 : 11;
    for (int i = threadIdx.x; i < BINS; i += THREADS) s.counts[i] = 0, s.masses[i] = 0;
    __syncthreads();
    each_logit(row, vocab, [&](int, float logit) {
      const u32 rank = rank_of(logit);
      const bool same = digit == 0 || rank >> (shift + width) == floor >> (shift + width);
      if (!same || rank < floor) return;
      const u32 bin = rank >> shift & ((1u << width) - 1);
      atomicAdd(s.counts + bin, 1u);
      if (enough.mass != WHOLE) add_mass(s.masses, bin, exp_f32(logit / d.temperature - (float)max));
    });
    __syncthreads();
    cut_at(s.cut, s.counts, s.masses, s.warps, digit, digit == 0 ? 0 : floor & ~0u << (shift + width), above, enough);
    __syncthreads();
    if (s.cut->rank > floor) floor = s.cut->rank;
    above = s.cut->above;
    if (s.cut->count <= KEPT || !s.cut->reached) break;
  }
  return floor;
}

// Ascending order of `size` keys, a power of two: bitonic.
__device__ __forceinline__ void sort(u64 *keys, int size) {
  for (int run = 2; run <= size; run <<= 1) {
    for (int stride = run / 2; stride > 0; stride >>= 1) {
      for (int i = threadIdx.x; i < size / 2; i += THREADS) {
        const int low = 2 * i - (i & (stride - 1)), high = low + stride;
        const u64 a = keys[low], b = keys[high];
        if ((a > b) == ((low & run) == 0)) keys[low] = b, keys[high] = a;
      }
      __syncthreads();
    }
  }
}

// How many of the sorted candidates the filters keep, and their masses' sum.
struct Kept {
  int count;
  double sum;
};

__device__ __forceinline__ Kept filter(const double *masses, int count, const Draw &d, double sum) {
  const bool by_p = d.top_p < 1.0f;
  const double enough = (double)d.top_p * (d.top_k > 0 ? total(masses, by_p ? count : 0) : sum);
  Kept kept = {0, 0.0};
  for (int i = 0; i < count; i++) {
    if (d.min_p > 0.0f && masses[i] < (double)d.min_p) break;
    kept.count++;
    kept.sum += masses[i];
    if (by_p && kept.sum >= enough) break;
  }
  return kept;
}

}  // namespace sample

// Rows that are greedy or without filters; others are left alone. Grid: rows.
extern "C" __global__ void __launch_bounds__(256)
sample_f32(double *__restrict__ picks, const float *__restrict__ logits, const float *__restrict__ sums, const u32 *__restrict__ draws, i32 vocab,
           i32 chunks) {
  using namespace sample;
  SORFT_SMEM(double, masses, CHUNK + PIECES);
  SORFT_SMEM(double, pieces, PIECES);
  SORFT_SMEM(double, of_chunks, CHUNKS);
  SORFT_SMEM(float, tops, CHUNKS);
  SORFT_SMEM(float, scratch, WARPS);
  SORFT_SMEM(Best, best, WARPS);
  SORFT_SMEM(double, told, 2);
  SORFT_SMEM(int, chosen, 1);
  ptx::begin_after_earlier_launches(logits, sums);
  const i64 row = blockIdx.x;
  const Draw d(draws, row);
  if (d.filtered()) return;
  const double max = chunks_of(tops, of_chunks, scratch, sums + 3 * row * chunks, chunks);
  if (threadIdx.x == 0) {
    told[0] = total(of_chunks, chunks);
    const Walk w = walk(chunks, d.u * told[0], [&](int i) { return of_chunks[i]; });
    int chunk = d.greedy() ? 0 : w.taken;
    if (d.greedy())
      for (int c = chunks - 1; c > 0; c--)
        if ((double)tops[c] == max && (double)tops[0] != max) chunk = c;
    told[1] = w.rest, chosen[0] = chunk;
  }
  __syncthreads();
  const double sum = told[0], rest = told[1];
  const int first = chosen[0] * CHUNK, count = min(CHUNK, vocab - first), at = threadIdx.x * EACH;
  const int there = at < count ? EACH : 0;  // V is a multiple of 8, so all of a thread's are or none
  const float *own = logits + row * vocab + first;
  float v[EACH];
  SORFT_UNROLL
  for (int i = 0; i < EACH; i += 4) {
    const float4 part = there ? load_vec<float4>(own + at + i) : float4{};
    v[i] = part.x, v[i + 1] = part.y, v[i + 2] = part.z, v[i + 3] = part.w;
  }
  const int taken = d.greedy() ? first_largest(v, there, best) : inverted(v, there, count, d.divisor(), max, rest, masses, pieces);
  if (threadIdx.x == 0) put(picks, row, max, sum, own[taken] / d.divisor(), first + taken);
}
SORFT_EXPORT(sample_f32)

// Rows with filters; others are left alone. Grid: rows.
extern "C" __global__ void __launch_bounds__(256)
sample_filtered_f32(double *__restrict__ picks, const float *__restrict__ logits, const float *__restrict__ sums, const u32 *__restrict__ draws,
                    i32 vocab, i32 chunks) {
  using namespace sample;
  SORFT_SMEM(u64, keys, KEPT);
  SORFT_SMEM(double, masses, KEPT);
  SORFT_SMEM(u32, counts, BINS);
  SORFT_SMEM(float, tops, CHUNKS);
  SORFT_SMEM(float, scratch, WARPS);
  SORFT_SMEM(Amount, warps, WARPS);
  SORFT_SMEM(Cut, cut, 1);
  SORFT_SMEM(double, told, 1);
  SORFT_SMEM(u32, found, 1);
  ptx::begin_after_earlier_launches(logits, sums);
  const i64 row = blockIdx.x;
  const Draw d(draws, row);
  if (!d.filtered()) return;
  const double max = chunks_of(tops, masses, scratch, sums + 3 * row * chunks, chunks);
  if (threadIdx.x == 0) told[0] = total(masses, chunks), found[0] = 0;
  __syncthreads();
  const double sum = told[0];
  const float *own = logits + row * vocab;
  const Amount enough = enough_of(d, max, sum);
  u32 floor = floor_of(d, max, sum, vocab);
  if (enough.count <= KEPT || enough.mass != WHOLE) floor = raised(floor, own, vocab, d, max, enough, {counts, keys, warps, cut});
  each_logit(own, vocab, [&](int column, float logit) {
    if (rank_of(logit) < floor) return;
    const u32 at = atomicAdd(found, 1u);
    if (at < KEPT) keys[at] = (u64)~rank_of(logit) << 32 | (u32)column;
  });
  __syncthreads();
  const u32 passing = found[0];
  if (passing > KEPT) {
    if (threadIdx.x == 0) put(picks, row, max, sum, 0.0f, -1.0);
    return;
  }
  int size = 2;
  while (size < (int)passing) size *= 2;
  for (int i = passing + threadIdx.x; i < size; i += THREADS) keys[i] = ~0ull;
  __syncthreads();
  sort(keys, size);
  const int count = (int)(d.top_k > 0 ? min(passing, d.top_k) : passing);
  for (int i = threadIdx.x; i < count; i += THREADS)
    masses[i] = row_softmax::exp_f64((double)(logit_of(~(u32)(keys[i] >> 32)) / d.temperature) - max);
  __syncthreads();
  if (threadIdx.x > 0) return;
  const Kept kept = filter(masses, count, d, sum);
  if (kept.count == 0) return put(picks, row, max, sum, __uint_as_float(0x7fc00000u), 0.0);
  const u64 key = keys[walk(kept.count, d.u * kept.sum, [&](int i) { return masses[i]; }).taken];
  put(picks, row, max, sum, logit_of(~(u32)(key >> 32)) / d.temperature, (double)(u32)key);
}
SORFT_EXPORT(sample_filtered_f32)
