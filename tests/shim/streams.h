// Streams, events and memory, as ill-behaved as CUDA allows.
//
// Calls only queue work; it runs when the host waits, in an order that events alone restrain, so that a missing wait
// gives a wrong result. Memory starts as NaN, lies between redzones, and is NaN again where its stream passes the point
// at which it was freed.
#pragma once

#include "kernels.h"

#include <algorithm>
#include <array>
#include <climits>
#include <cstring>
#include <set>
#include <tuple>

namespace shim {

// How many things of a kind are open, how often a function was called, and which call is to fail.
inline std::map<std::string, long> open_things, calls;
struct Failure { std::string name; long after; int code; };
inline Failure failure{};
inline int planned(const char* name) {
  const Lock lock(world);
  const long before = calls[name]++;
  return failure.name == name && failure.after == before ? failure.code : 0;
}
#define MAY_FAIL(Status) \
  if (const int code = shim::planned(__func__)) return static_cast<Status>(code)

struct Mark {  // how often an event was recorded, and how many of these records have been passed
  long asked = 0, passed = 0;
};
struct Operation {
  std::function<void()> run;
  std::shared_ptr<Mark> after, marks;  // it runs once `after` was passed `number` times, or then passes `marks`
  long number = 0;
  bool ready() const { return !after || after->passed >= number; }
};

}  // namespace shim

struct CUstream_st {
  int device = 0;
  std::deque<std::unique_ptr<shim::Operation>> queue;
  std::vector<std::unique_ptr<shim::Operation>> done;  // freed once the host has waited
  shim::Fiber fiber;
  shim::Block block;
  bool ready() const { return !queue.empty() && queue.front()->ready(); }
};
struct CUevent_st {
  std::shared_ptr<shim::Mark> mark = std::make_shared<shim::Mark>();
};

namespace shim {

constexpr int kDevices = 2, kPool = 5;
inline thread_local int current_device = 0;

// Of every device its default stream, then torch's pool.
using Streams = std::array<CUstream_st, kDevices*(1 + kPool)>;
inline Streams& streams() {
  static Streams& all = *[] {
    auto* made = new Streams;
    for (size_t i = 0; i < made->size(); ++i) (*made)[i].device = static_cast<int>(i % kDevices);
    return made;
  }();
  return all;
}
inline cudaStream_t stream_of(int device, int which) { return &streams()[static_cast<size_t>(which * kDevices + device)]; }
inline CUstream_st& at(cudaStream_t stream) { return stream ? *stream : *stream_of(current_device, 0); }

inline void step(CUstream_st& stream) {
  std::unique_ptr<Operation> operation = std::move(stream.queue.front());
  stream.queue.pop_front();
  stream.fiber.begin(operation->run);
  stream.fiber.resume();
  if (operation->marks) operation->marks->passed = std::max(operation->marks->passed, operation->number);
  stream.done.push_back(std::move(operation));
}

// Lets streams go on until the condition holds or none can.
template <typename Condition>
void run_until(Condition holds) {
  while (!holds()) {
    std::vector<CUstream_st*> ready;
    for (CUstream_st& stream : streams())
      if (stream.ready()) ready.push_back(&stream);
    if (ready.empty()) return;
    step(*ready[choose(ready.size())]);
  }
}

inline void submit(cudaStream_t to, Operation asked) {
  const Lock lock(world);
  CUstream_st& stream = at(to);
  stream.queue.push_back(std::make_unique<Operation>(asked));
  Operation& queued = *stream.queue.back();
  queued.run = [&stream, operation = std::move(asked)] {
    if (operation.after) observe(operation.after.get());
    if (operation.run) operation.run();
    if (operation.marks) publish(operation.marks.get());
    publish(&stream);
  };
  publish(&queued.run);
  if (schedule == at_once) run_until([] { return false; });
}

inline void wait_for(CUstream_st& stream) {
  const Lock lock(world);
  run_until([&] { return stream.queue.empty(); });
  if (!stream.queue.empty()) fault("streams wait for one another");
  observe(&stream);
}

constexpr int64_t kRedzone = 256;

struct Memory {
  const int64_t size;
  const cudaStream_t owner;
  const std::unique_ptr<char[]> space{new char[static_cast<size_t>(size + 3 * kRedzone)]};
  char* const data = space.get() + 2 * kRedzone - reinterpret_cast<uintptr_t>(space.get()) % kRedzone;
  std::vector<std::pair<char*, int64_t>> redzones{{data - kRedzone, kRedzone}, {data + size, kRedzone}};
  bool freed = false;

  Memory(int64_t bytes, cudaStream_t stream) : size(bytes), owner(stream) { poison(); }
  // With the bytes that make a NaN of every floating type.
  void poison() { std::memset(data - kRedzone, 0xff, static_cast<size_t>(size + 2 * kRedzone)); }
  static bool poisoned(const char* from, int64_t count) {
    return std::all_of(from, from + count, [](char byte) { return byte == '\xff'; });
  }
};
inline std::set<Memory*> memories;
inline int64_t last_allocation = 0;

// On the stream that is current, as torch's allocator has it: once freed it may serve what that stream does next.
inline std::shared_ptr<Memory> allocate(int64_t size, cudaStream_t stream) {
  const Lock lock(world);
  ++open_things["memory"], last_allocation = size;
  Memory* const memory = *memories.insert(new Memory(size, &at(stream))).first;
  return {memory, [](Memory* it) {
            const Lock lock(world);
            --open_things["memory"];
            it->freed = true;
            submit(it->owner, {[it] {
              for (const auto& [start, count] : it->redzones)
                if (!Memory::poisoned(start, count)) fault("the redzone at byte ", start - it->data, " was written");
              it->poison();
            }});
          }};
}

// The bytes that a piece of some memory takes with a redzone behind it.
inline int64_t piece(char* start, int64_t size) {
  const Lock lock(world);
  const int64_t padded = (size + kRedzone - 1) / kRedzone * kRedzone + kRedzone;
  for (Memory* memory : memories)
    if (start && memory->data <= start && start < memory->data + memory->size)
      memory->redzones.emplace_back(start + size, padded - size);
  return padded;
}

// The end of a case: all that was queued runs, and nobody has written to what was freed.
inline void settle() {
  const Lock lock(world);
  run_until([] { return false; });
  for (CUstream_st& stream : streams()) {
    wait_for(stream);
    stream.queue.clear(), stream.done.clear();
  }
  for (auto it = memories.begin(); it != memories.end();) {
    Memory* const memory = *it;
    if (!memory->freed) {
      ++it;
      continue;
    }
    if (!Memory::poisoned(memory->data - kRedzone, memory->size + 2 * kRedzone)) fault("freed memory was written");
    it = memories.erase(it);
    delete memory;
  }
}

inline thread_local cudaError_t last_error = cudaSuccess;

template <typename... P, typename... A>
void launch(void (*kernel)(P...), unsigned blocks, unsigned threads, size_t, cudaStream_t stream, A... arguments) {
  last_error = static_cast<cudaError_t>(planned("launch"));
  if (blocks == 0 || blocks > INT_MAX || threads == 0 || threads > 1024) last_error = cudaErrorInvalidConfiguration;
  if (last_error != cudaSuccess) return;
  submit(stream, {[=, on = &at(stream), values = std::tuple<P...>(arguments...)] {
    const std::function<void()> body = [&] { std::apply(kernel, values); };
    for (unsigned i = 0; i < blocks; ++i) {
      set_block(in_turn(i, blocks), threads);
      on->block.run(body, threads);
    }
  }});
}

}  // namespace shim
