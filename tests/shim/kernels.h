// The threads of a kernel, as fibers of one thread of the host.
#pragma once

#include "cuda.h"

#include <ucontext.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#define UNWATCHED __attribute__((noinline, no_sanitize("thread")))
#else
#define UNWATCHED
#endif

namespace shim {

inline std::recursive_mutex world;  // held in every call from a host thread
using Lock = std::lock_guard<std::recursive_mutex>;

// What went wrong unseen by the code under test.
inline std::vector<std::string> faults;
template <typename... Words>
void fault(const Words&... words) {
  std::ostringstream sentence;
  (sentence << ... << words);
  faults.push_back(sentence.str());
}

// Which of several streams goes on, and in which order the threads of a kernel run.
enum Schedule { at_once, oldest_first, newest_first, shuffled };
inline Schedule schedule = at_once;
inline uint64_t draw = 1;
inline size_t choose(size_t count) {
  draw = draw * 6364136223846793005u + 1442695040888963407u;
  return schedule == shuffled ? (draw >> 33) % count : schedule == newest_first ? count - 1 : 0;
}
inline unsigned in_turn(unsigned i, unsigned count) { return schedule == newest_first ? count - 1 - i : i; }

// What one fiber did before it published a place, another knows that observes it. ThreadSanitizer takes every fiber, and
// so every stream and every thread of a kernel, for a thread of its own: what nothing orders is a race, however it ran.
#ifdef __SANITIZE_THREAD__
inline void publish(const void* place) { __tsan_release(const_cast<void*>(place)); }
inline void observe(const void* place) { __tsan_acquire(const_cast<void*>(place)); }
#else
inline void publish(const void*) {}
inline void observe(const void*) {}
#endif

// Some work with a stack of its own, which may pause.
class Fiber {
 public:
  Fiber() {
    getcontext(&own_);
    own_.uc_stack.ss_sp = stack_.get();
    own_.uc_stack.ss_size = kStack;
    makecontext(&own_, start, 0);
#ifdef __SANITIZE_THREAD__
    watched_ = __tsan_create_fiber(0);
#endif
  }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The work must have been published.
  UNWATCHED void begin(const std::function<void()>& work) { work_ = &work, ended_ = false; }
  // Until the work pauses, or ends: then true.
  UNWATCHED bool resume() {
    Fiber* const before = running_;
    running_ = this;
#ifdef __SANITIZE_THREAD__
    caller_watched_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(watched_, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(nullptr, stack_.get(), kStack);
#endif
    swapcontext(&caller_, &own_);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
    running_ = before;
    return ended_;
  }
  UNWATCHED static void pause() { running_->leave(); }

 private:
  static constexpr size_t kStack = 1 << 16;

  UNWATCHED static void start() { running_->loop(); }
  UNWATCHED void loop() {
    arrive();
    for (;; leave()) {
      observe(work_);
      (*work_)();
      ended_ = true;
    }
  }
  UNWATCHED void leave() {
#ifdef __SANITIZE_THREAD__
    __tsan_switch_to_fiber(caller_watched_, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(nullptr, caller_stack_, caller_size_);
#endif
    swapcontext(&own_, &caller_);
    arrive();
  }
  void arrive() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &caller_stack_, &caller_size_);
#endif
  }

  inline static Fiber* running_ = nullptr;
  std::unique_ptr<char[]> stack_{new char[kStack]};
  ucontext_t own_{}, caller_{};
  const std::function<void()>* work_ = nullptr;
  bool ended_ = false;
  void *watched_ = nullptr, *caller_watched_ = nullptr;
  const void* caller_stack_ = nullptr;
  size_t caller_size_ = 0;
};

struct Indices { uint3 thread, block, size; };
inline Indices here{};
UNWATCHED inline uint3 thread_index() { return here.thread; }
UNWATCHED inline uint3 block_index() { return here.block; }
UNWATCHED inline uint3 block_size() { return here.size; }
UNWATCHED inline void set_thread(unsigned x) { here.thread.x = x; }
UNWATCHED inline void set_block(unsigned x, unsigned size) { here.block.x = x, here.size.x = size; }

// The votes of the barrier that threads wait at, and of the one they come from.
inline int votes = 0, counted_votes = 0;
UNWATCHED inline void vote(int value) { votes |= value; }
UNWATCHED inline int result_of_vote() { return counted_votes; }
UNWATCHED inline void count_votes() { counted_votes = votes, votes = 0; }
inline int barrier(int value) {
  vote(value);
  publish(&votes);
  Fiber::pause();
  observe(&votes);
  return result_of_vote();
}

// A CUDA block: every thread runs until it waits at a barrier, then every thread goes on.
class Block {
 public:
  void run(const std::function<void()>& body, unsigned threads) {
    while (fibers_.size() < threads) fibers_.emplace_back();
    const std::function<void()> thread = [&] {
      body();
      publish(&votes);
    };
    publish(&thread);
    observe(&here);  // what a kernel calls shared is here shared by all CUDA blocks
    for (unsigned i = 0; i < threads; ++i) fibers_[i].begin(thread);
    for (unsigned running = threads, ended; running; running -= ended) {
      ended = 0;
      count_votes();
      for (unsigned i = 0; i < threads; ++i) {
        const unsigned index = in_turn(i, threads);
        set_thread(index);
        ended += fibers_[index].resume();
      }
      if (ended && ended < running) return fault("threads wait at a barrier that ", ended, " others never reach");
    }
    observe(&votes);
    publish(&here);
  }

 private:
  std::deque<Fiber> fibers_;
};

}  // namespace shim
