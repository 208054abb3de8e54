// Sharing work among threads such that results do not depend on how many there are.

#pragma once

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace {

// Runs a function on `threads` threads: OpenMP's GOMP_parallel, so that the threads of PyTorch's pool, which spin on
// their cores between its own operations, do the work instead of being in its way.
typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);

// Calls work(i, scratch) for every i below `count`, each on one thread alone; a thread makes its scratch with make().
template <typename Make, typename Work>
void share_out(long count, int threads, Parallel parallel, Make make, Work work) {
  threads = int(std::min<long>(threads, count));
  std::atomic<long> next{0};
  auto share = [&] {
    auto scratch = make();
    for (long i; (i = next++) < count;) work(i, scratch);
  };
  if (threads > 1 && parallel) {
    parallel([](void* of) { (*static_cast<decltype(share)*>(of))(); }, &share, threads, 0);
    return;
  }
  std::vector<std::thread> others;
  for (int worker = 1; worker < threads; ++worker) others.emplace_back(share);
  share();
  for (auto& other : others) other.join();
}

}  // namespace
