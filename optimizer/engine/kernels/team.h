// Threads that share the parts of a step.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace {

// Threads that wait a little for the next step before they sleep: steps follow each other within microseconds.
class Team {
 public:
  // Every part of a step, over `threads` threads, the caller among them.
  template <typename Work>
  void share(int64_t threads, int64_t parts, const Work &work) {
    while (static_cast<int64_t>(helpers_.size()) < threads - 1)
      helpers_.emplace_back([this, index = helpers_.size()] { help(index); });
    run_ = [](const void *of, int64_t index) { (*static_cast<const Work *>(of))(index); };
    work_ = &work;
    parts_ = parts;
    next_.store(0, std::memory_order_relaxed);
    working_.store(threads - 1, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      call_.store((call_.load(std::memory_order_relaxed) / MOST + 1) * MOST + threads - 1);
    }
    wake_.notify_all();
    take();
    while (working_.load(std::memory_order_acquire) > 0) pause();
  }

 private:
  static constexpr int PATIENCE = 20000;
  static constexpr uint64_t MOST = 1024;

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  void take() {
    for (int64_t index; (index = next_.fetch_add(1, std::memory_order_relaxed)) < parts_;) run_(work_, index);
  }

  void help(uint64_t index) {
    uint64_t seen = 0;
    for (;;) {
      for (int i = 0; i < PATIENCE && call_.load(std::memory_order_acquire) == seen; i++) pause();
      if (call_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return call_.load(std::memory_order_acquire) != seen; });
      }
      seen = call_.load(std::memory_order_acquire);
      if (index < seen % MOST) {
        take();
        working_.fetch_sub(1, std::memory_order_release);
      }
    }
  }

  std::vector<std::thread> helpers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> call_{0};  // how many there were, times MOST, plus how many helpers the last one wants
  std::atomic<int64_t> next_{0}, working_{0};
  int64_t parts_ = 0;
  void (*run_)(const void *, int64_t) = nullptr;
  const void *work_ = nullptr;
};

}  // namespace
