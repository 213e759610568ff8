// Vectors of WIDTH floats, in what GCC and Clang share; and what keeps compilers from undoing a register's use.

#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#ifndef WIDTH
#define WIDTH 4
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

typedef float vec __attribute__((vector_size(WIDTH * 4)));
typedef int32_t lanes __attribute__((vector_size(WIDTH * 4)));
typedef float unaligned __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
typedef float four __attribute__((vector_size(16)));
#if WIDTH == 16
typedef float narrow __attribute__((vector_size(32)));  // rows of 8 pixels or fewer need no wider one
#else
typedef vec narrow;
#endif

inline vec load(const float *p) { return *reinterpret_cast<const unaligned *>(p); }
inline void store(float *p, vec value) { *reinterpret_cast<unaligned *>(p) = value; }
template <typename V>
inline V load_as(const float *p) {
  V value;
  std::memcpy(&value, p, sizeof value);
  return value;
}
template <typename V>
inline V all(float value) { return value - V{}; }  // unlike value + V{}, which is no -0 where value is, no addition
inline vec splat(float value) { return all<vec>(value); }
template <typename V>
inline V larger(V a, V b) { return a > b ? a : b; }
template <typename V>
inline V smaller(V a, V b) { return a < b ? a : b; }

// The first `count` lanes; what lies behind them in memory is neither read nor written.
template <typename V>
inline void store_first(float *p, V value, int64_t count) {
#if WIDTH == 16
  __m512 whole;
  if constexpr (sizeof value == sizeof whole) {
    whole = reinterpret_cast<__m512>(value);
  } else {
    whole = _mm512_castps256_ps512(reinterpret_cast<__m256>(value));
  }
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), whole);
#elif WIDTH == 8
  lanes place;
  for (int k = 0; k < WIDTH; k++) place[k] = k;
  _mm256_maskstore_ps(p, reinterpret_cast<__m256i>(place < static_cast<int32_t>(count)), value);
#else
  std::memcpy(p, &value, count * sizeof(float));
#endif
}

// A pointer that goes from row to row, as one register: the compiler would keep an address for each row.
template <typename T>
__attribute__((always_inline)) inline void step_to(T *&p, int64_t floats) {
  p += floats;
  asm("" : "+r"(p));
}

// An address in one register: from one that is the sum of two, a multiply-add and its load are two instructions to
// the processor, not one.
template <typename T>
__attribute__((always_inline)) inline T *address(T *p) {
  asm("" : "+r"(p));
  return p;
}

// A value that is used several times, loaded once: the compiler would load it with each use, and most of these
// loads cross the end of a cache line.
template <typename V>
__attribute__((always_inline)) inline V loaded(V value) {
#if defined(__x86_64__)
  asm("" : "+v"(value));
#elif defined(__aarch64__)
  asm("" : "+w"(value));
#endif
  return value;
}

template <typename V>
constexpr int LANES = sizeof(V) / sizeof(float);

// Every STEP-th of the two vectors' floats from the FIRST on, as many as one vector has.
template <int FIRST, int STEP, typename V, int... K>
inline V picked(V a, V b, std::integer_sequence<int, K...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (FIRST + STEP * K)...);
#else
  return __builtin_shuffle(a, b, decltype(a < b){(FIRST + STEP * K)...});
#endif
}
template <int FIRST, int STEP, typename V>
inline V picked(V a, V b) {
  return picked<FIRST, STEP>(a, b, std::make_integer_sequence<int, LANES<V>>());
}

// The first, third, ... of twice as many floats as a vector has.
template <typename V>
inline V every_second(const float *p) {
  return picked<0, 2>(load_as<V>(p), load_as<V>(p + LANES<V>));
}

// What it does with 0, 1, ..., each known to the compiler: arrays that it indexes then stay in registers, whatever the
// branches between.
template <typename Body, int... I>
__attribute__((always_inline)) inline void each(const Body &body, std::integer_sequence<int, I...>) {
  (body(std::integral_constant<int, I>()), ...);
}
template <int COUNT, typename Body>
__attribute__((always_inline)) inline void each(const Body &body) {
  each(body, std::make_integer_sequence<int, COUNT>());
}

// Where the lanes of a vector are found in another one, and whether they are (-1: nowhere).
template <typename V>
struct Places {
  using Lanes = decltype(V{} < V{});
  Lanes from, inside;

  explicit Places(const int32_t *places) {
    std::memcpy(&from, places, sizeof from);
    inside = loaded(from >= 0);
  }
};

// The lanes of `row` in another order, zeros where there is no place for them.
template <typename V>
inline V moved(V row, const Places<V> &places) {
#if defined(__x86_64__)
  if constexpr (sizeof row == 64) {
    const __mmask16 inside = _mm512_test_epi32_mask(
        reinterpret_cast<__m512i>(places.inside), reinterpret_cast<__m512i>(places.inside));
    return reinterpret_cast<V>(_mm512_maskz_permutexvar_ps(
        inside, reinterpret_cast<__m512i>(places.from), reinterpret_cast<__m512>(row)));
  } else if constexpr (sizeof row == 32) {
    const __m256 found =
        _mm256_permutevar8x32_ps(reinterpret_cast<__m256>(row), reinterpret_cast<__m256i>(places.from));
    return reinterpret_cast<V>(reinterpret_cast<typename Places<V>::Lanes>(found) & places.inside);
  }
#endif
  V found{};
  for (int k = 0; k < LANES<V>; k++)
    if (places.inside[k]) found[k] = row[places.from[k]];
  return found;
}

}  // namespace
