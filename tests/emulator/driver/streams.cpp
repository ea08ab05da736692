// streams.cpp - streams, events, graphs.
//
// `late` (the default): work waits in its stream until the host waits for it, so that a host that forgets to wait reads what
// was there before. Streams run one after the other then, each no further than somebody waits for. `eager`: at the call.
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <algorithm>
#include "driver.h"

// The device's clock: the sum of what its kernels and copies take, where that was said.
static double now_ms(const Device* device) {
  if (settings.kernel_us > 0 || settings.copy_us > 0) return device->clock_us * 1e-3;
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

// ---- graphs' nodes and captures ------------------------------------------------------------------------------------------------
struct Node { Work work; std::set<int> after; };
struct Capture {
  Stream* origin;
  int mode;                                  // 0 global, 1 this thread, 2 relaxed
  bool invalid = false;
  std::vector<Node> nodes;
  std::set<Stream*> streams;
};
struct Graph { std::vector<Node> nodes; };
static thread_local std::set<Capture*> captures_here;

bool capturing_here() { return std::any_of(captures_here.begin(), captures_here.end(), [](Capture* c) { return c->mode != 2; }); }
CUresult forbid_in_capture(const char* call) {
  if (!capturing_here()) return SUCCESS;
  say("%s while this thread captures a graph", call);
  for (Capture* c : captures_here) c->invalid = true;
  return CAPTURE_UNSUPPORTED;
}
// Any order that the edges allow is right; `reverse` takes the youngest that may run, so a missing edge shows.
static CUresult run_graph(const std::vector<Node>& nodes) {
  std::vector<bool> done(nodes.size());
  for (size_t left = nodes.size(); left; left--) {
    int pick = -1;
    for (int i = 0; i < (int)nodes.size(); i++) {
      if (done[(size_t)i]) continue;
      bool ready = std::all_of(nodes[(size_t)i].after.begin(), nodes[(size_t)i].after.end(), [&](int a) { return done[(size_t)a]; });
      if (ready) { pick = i; if (emu::opt.order != emu::REVERSE) break; }
    }
    if (CUresult r = nodes[(size_t)pick].work()) return r;
    done[(size_t)pick] = true;
  }
  return SUCCESS;
}

// ---- running -------------------------------------------------------------------------------------------------------------------------
// A call that does not wait sets this. All others never come back from a device that hangs; a test is to see that, so they end it.
static thread_local bool asking = false;
struct Asking {
  bool before = asking;
  Asking() { asking = true; }
  ~Asking() { asking = before; }
};
static CUresult hang() {
  if (asking) return NOT_READY;
  say("the host waits for a device that hangs, and would do so for ever");
  abort();
}
static CUresult run_until(Stream* s, uint64_t ticket) {
  while (s->done < ticket) {
    if (s->context->hung) return hang();
    if (s->context->broken) { s->queue.clear(); s->done = s->issued; break; }
    Work work = std::move(s->queue.front());
    s->queue.pop_front();
    s->done++;
    CUresult r = work();
    if (s->context->hung) { s->done--; return hang(); }  // its work is never done
    if (r) return break_context(s->context, r);
  }
  return s->context->broken;
}
CUresult run_stream(Stream* s) { return run_until(s, s->issued); }
CUresult run_context(Context* c) {
  for (Stream* s : std::vector<Stream*>(c->streams.begin(), c->streams.end()))
    if (CUresult r = run_stream(s)) return r;
  return c->broken;
}
Stream* stream_of(void* handle) { return handle ? (Stream*)handle : current_context->null_stream; }

CUresult enqueue(Stream* s, const char* what, Work work) {
  (void)what;
  if (s->capture) {
    if (s->capture->invalid) return CAPTURE_INVALIDATED;
    s->capture->nodes.push_back({std::move(work), s->frontier});
    s->frontier = {(int)s->capture->nodes.size() - 1};
    return SUCCESS;
  }
  // the null stream and the blocking ones wait for each other
  if (s->blocking)
    for (Stream* other : s->context->streams)
      if (other != s && other->blocking && (s == s->context->null_stream || other == s->context->null_stream) && other->done < other->issued) {
        uint64_t ticket = other->issued;
        s->queue.push_back([other, ticket] { return run_until(other, ticket); });
        s->issued++;
      }
  s->queue.push_back(std::move(work));
  s->issued++;
  if (settings.late) return SUCCESS;
  Asking that_does_not_wait;
  CUresult r = run_stream(s);
  return s->context->hung ? SUCCESS : r;
}

// ---- streams ----------------------------------------------------------------------------------------------------------------------------
API cuStreamCreate(Stream** s, unsigned flags) {
  ENTER();
  *s = new Stream{current_context, !(flags & 1), {}, 0, 0, nullptr, {}};
  current_context->streams.insert(*s);
  return SUCCESS;
}
API cuStreamCreateWithPriority(Stream** s, unsigned flags, int) { return cuStreamCreate(s, flags); }
API cuStreamDestroy_v2(Stream* s) {
  std::lock_guard<std::recursive_mutex> lock(big_lock);
  if (!s) return INVALID_HANDLE;
  CUresult r = run_stream(s);                // what was queued still happens
  s->context->streams.erase(s);
  delete s;
  return r;
}
API cuStreamSynchronize(void* handle) {
  ENTER();
  if (stream_of(handle)->capture) return forbid_in_capture("cuStreamSynchronize"), CAPTURE_UNSUPPORTED;
  if (CUresult r = forbid_in_capture("cuStreamSynchronize")) return r;
  return run_stream(stream_of(handle));
}
API cuStreamQuery(void* handle) {
  ENTER();
  Stream* s = stream_of(handle);
  if (s->done == s->issued) return SUCCESS;
  Asking that_does_not_wait;
  if (CUresult r = run_until(s, s->done + 1)) return r;  // so that a loop of queries comes to an end
  return NOT_READY;
}
API cuStreamGetFlags(void* handle, unsigned* flags) { ENTER(); *flags = stream_of(handle)->blocking ? 0 : 1; return SUCCESS; }
API cuStreamGetPriority(void*, int* priority) { *priority = 0; return SUCCESS; }
API cuLaunchHostFunc(void* handle, void (*function)(void*), void* data) { ENTER(); return enqueue(stream_of(handle), "host function", [=] { function(data); return (CUresult)SUCCESS; }); }
API cuStreamAttachMemAsync(void*, CUdeviceptr, size_t, unsigned) { return NOT_SUPPORTED; }

// ---- events ---------------------------------------------------------------------------------------------------------------------------------
struct Record { Stream* stream; uint64_t ticket; bool done; double ms; Capture* capture; std::set<int> frontier; };
struct Event { bool timed; std::shared_ptr<Record> last; };
API cuEventCreate(Event** e, unsigned flags) { ENTER(); *e = new Event{!(flags & 2), nullptr}; return SUCCESS; }
API cuEventDestroy_v2(Event* e) { delete e; return SUCCESS; }
API cuEventRecord(Event* e, void* handle) {
  ENTER();
  Stream* s = stream_of(handle);
  auto r = std::make_shared<Record>(Record{s, 0, false, 0, s->capture, s->frontier});
  e->last = r;
  if (s->capture) return SUCCESS;
  CUresult bad = enqueue(s, "event", [r] { r->done = true; r->ms = now_ms(r->stream->context->device); return (CUresult)SUCCESS; });
  r->ticket = s->issued;
  return bad;
}
API cuStreamWaitEvent(void* handle, Event* e, unsigned) {
  ENTER();
  Stream* s = stream_of(handle);
  std::shared_ptr<Record> r = e->last;
  if (!r) return SUCCESS;
  if (r->capture) {                          // joins the capture
    if (!captures_here.count(r->capture)) return INVALID_VALUE;
    if (!s->capture) { s->capture = r->capture; s->frontier.clear(); r->capture->streams.insert(s); }
    if (s->capture != r->capture) return INVALID_VALUE;
    s->frontier.insert(r->frontier.begin(), r->frontier.end());
    return SUCCESS;
  }
  if (s->capture) { s->capture->invalid = true; say("a capturing stream waits for an event from outside of the capture"); return 905; }
  return enqueue(s, "wait", [r] { return r->done ? SUCCESS : run_until(r->stream, r->ticket); });
}
API cuEventSynchronize(Event* e) {
  ENTER();
  if (CUresult r = forbid_in_capture("cuEventSynchronize")) return r;
  if (!e->last || e->last->done) return SUCCESS;
  if (e->last->capture) return CAPTURED_EVENT;
  return run_until(e->last->stream, e->last->ticket);
}
API cuEventQuery(Event* e) {
  ENTER();
  if (CUresult r = forbid_in_capture("cuEventQuery")) return r;
  if (!e->last || e->last->done) return SUCCESS;
  if (e->last->capture) return CAPTURED_EVENT;
  Asking that_does_not_wait;
  if (CUresult r = run_until(e->last->stream, e->last->stream->done + 1)) return r;
  return NOT_READY;
}
API cuEventElapsedTime_v2(float* ms, Event* a, Event* b) {
  ENTER();
  if (!a->timed || !b->timed || !a->last || !b->last) return INVALID_HANDLE;
  if (!a->last->done || !b->last->done) return NOT_READY;
  *ms = (float)(b->last->ms - a->last->ms);
  return SUCCESS;
}
API cuEventElapsedTime(float* ms, Event* a, Event* b) { return cuEventElapsedTime_v2(ms, a, b); }

// ---- graphs ---------------------------------------------------------------------------------------------------------------------------------
API cuStreamBeginCapture_v2(void* handle, int mode) {
  ENTER();
  Stream* s = stream_of(handle);
  if (!handle) return CAPTURE_UNSUPPORTED;   // the null stream
  if (s->capture) return INVALID_VALUE;
  s->capture = new Capture{s, mode, false, {}, {s}};
  s->frontier.clear();
  captures_here.insert(s->capture);
  return SUCCESS;
}
API cuStreamIsCapturing(void* handle, int* status) {
  ENTER();
  Stream* s = stream_of(handle);
  *status = !s->capture ? 0 : s->capture->invalid ? 2 : 1;
  return SUCCESS;
}
API cuStreamEndCapture(void* handle, Graph** graph) {
  ENTER();
  Stream* s = stream_of(handle);
  *graph = nullptr;
  Capture* c = s->capture;
  if (!c) return INVALID_VALUE;
  if (c->origin != s) return CAPTURE_UNMATCHED;
  // everything must lie before the origin's end
  std::vector<bool> seen(c->nodes.size());
  std::vector<int> open(s->frontier.begin(), s->frontier.end());
  while (!open.empty()) {
    int i = open.back();
    open.pop_back();
    if (seen[(size_t)i]) continue;
    seen[(size_t)i] = true;
    open.insert(open.end(), c->nodes[(size_t)i].after.begin(), c->nodes[(size_t)i].after.end());
  }
  bool joined = std::all_of(seen.begin(), seen.end(), [](bool b) { return b; });
  CUresult r = c->invalid ? CAPTURE_INVALIDATED : joined ? SUCCESS : CAPTURE_UNJOINED;
  if (!r) *graph = new Graph{std::move(c->nodes)};
  for (Stream* member : c->streams) { member->capture = nullptr; member->frontier.clear(); }
  captures_here.erase(c);
  delete c;
  return r;
}
API cuGraphInstantiateWithFlags(Graph** exec, Graph* graph, unsigned long long) { ENTER(); *exec = new Graph(*graph); return SUCCESS; }
API cuGraphGetNodes(Graph* graph, void**, size_t* n) { ENTER(); *n = graph->nodes.size(); return SUCCESS; }
API cuGraphUpload(Graph*, void*) { ENTER(); return SUCCESS; }
API cuGraphLaunch(Graph* exec, void* handle) {
  ENTER();
  auto nodes = std::make_shared<std::vector<Node>>(exec->nodes);
  return enqueue(stream_of(handle), "graph", [nodes] { trace("graph of %zu nodes", nodes->size()); return run_graph(*nodes); });
}
API cuGraphDestroy(Graph* graph) { delete graph; return SUCCESS; }
API cuGraphExecDestroy(Graph* exec) { delete exec; return SUCCESS; }
